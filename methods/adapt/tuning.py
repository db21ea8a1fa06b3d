"""What methods that tune a pretrained encoder by gradient descent have in common: knobs, the head they begin with, the loss.

Tuning begins at a linear probe's solution, which keeps the first gradients from destroying the features: Kumar et al. 2022,
"Fine-tuning can distort pretrained features and underperform out-of-distribution", arXiv:2202.10054.

B images, D embedding, K classes, n labelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapt.shared import Frame, ProbeConfig, fitted_layer, probabilities
from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Optimizer, RateGroup, SharedConfig, TrainingError
from methods.data.records import TrainData
from methods.encoder import Encoder
from methods.features import Features
from methods.parts.augment import Augment
from methods.parts.heads import UnitLength
from methods.parts.mirrored import MirroredEncoder
from methods.parts.tuned import TunedClassifier
from methods.world import World
from search_spaces.domains import Choice, Float, Int, knob

MOST = 1024
"""Labelled images that the probe is fitted on, evenly over the classes: what follows soon improves on it."""

EMBED = 64
"""Images embedded at a time for the probe."""


@dataclass(frozen=True)
class TuneConfig(SharedConfig):
    """Knobs of every method that tunes."""

    lr: float = knob(
        4e-3, Float(3e-4, 3e-2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="cross-validation on CIFAR-10",
    )  # fmt: skip
    batch_size: int = knob(
        32, Int(16, 128, power_of_two=True), legal=Int(2, 65536), unit="images", doc="labelled images per step",
        source="Kornblith 2019: 256 from thousands of labels",
    )  # fmt: skip
    augmentation: str = knob(
        "crop_flip",
        Choice(("weak", "strong", "simclr", "crop_flip")),
        doc="augmentation recipe",
        source="cross-validation on CIFAR-10: +3 points over weak",
    )
    head_rate: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1e4), unit="of the last block's", doc="learning rate of the head",
        source="Kornblith 2019: one rate for all",
    )  # fmt: skip
    batch_norm: str = knob(
        "frozen", Choice(("frozen", "trained")),
        doc="whether batch normalisation keeps its pretrained statistics, scales and shifts",
        source="cross-validation on CIFAR-10",
    )  # fmt: skip
    views: str = knob(
        "averaged", None, legal=Choice(("one", "averaged")),
        doc="an image is asked alone, or with its mirror image where that means the same", source="Krizhevsky 2012: averaged",
    )  # fmt: skip

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.batch_size)

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay, warmup=0.1)


def tuned_classifier(config: TuneConfig, context: Context, method: str, encoder: Encoder | None = None) -> TunedClassifier:
    """An encoder under a head that ``warm_start`` fills.

    Args:
        config: the method's knobs.
        context: the data, and the study's encoder.
        method: its name, for errors.
        encoder: another than the study's.
    Raises:
        TrainingError: the encoder has no parameters.
    """
    encoder = context.new_encoder() if encoder is None else encoder
    if not any(True for _ in encoder.parameters()):
        raise TrainingError(
            f"{method} needs an encoder that can be trained, got {encoder.name or 'one without parameters'};"
            " use a method on frozen features"
        )
    seen: Encoder = MirroredEncoder(encoder) if config.views == "averaged" and context.data.flip else encoder
    head = nn.Sequential(nn.BatchNorm1d(encoder.dim, affine=False), UnitLength(), nn.Linear(encoder.dim, context.classes))
    return TunedClassifier(seen, head, config.batch_norm == "frozen")


class Tuning(Learner):
    """Cross-entropy on the labelled images, from the probe's solution on.

    Args:
        config: its knobs.
        context: the data.
        model: what is trained, and what stays.
        layer_decay: a block's learning rate over that of the block behind it.
        held: from the stage's progress to how many of the first blocks stay as they are; None to leave that to the model.
    """

    def __init__(
        self,
        config: TuneConfig,
        context: Context,
        model: TunedClassifier,
        layer_decay: float = 1.0,
        held: Callable[[float], int] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.layer_decay, self.held = config, context.data, layer_decay, held
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = model

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        if self.held is not None:
            self.model.hold(self.held(step.progress))
        if step.number == 0:
            warm_start(self.model, self.data, step.world)
        return tuned_loss(self.model, self.augment, step.from_labelled())

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def rate_groups(self) -> tuple[RateGroup, ...]:
        return self.model.rate_groups(self.layer_decay, self.config.head_rate)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return augmented(self.augment, batch)


def tuned_loss(model: Callable[[Tensor], Tensor], augment: Augment, batch: Batch) -> Loss:
    """Cross-entropy of ``model``, images [B, C, H, W] -> logits [B, K], on augmented images."""
    logits = model(augment(batch.images, batch.stream))  # B K
    right = (logits.detach().argmax(1) == batch.labels()).float().mean()
    return Loss(F.cross_entropy(logits, batch.labels()), {"train_accuracy": right})


def augmented(augment: Augment, batch: Batch) -> Mapping[str, Tensor]:
    """A picture of images beside what the training makes of them."""
    x = augment(batch.images, batch.stream)
    return {"original and augmented": torch.cat([batch.images.float() / 255, x], dim=3)}


@torch.no_grad()
def warm_start(model: TunedClassifier, data: TrainData, world: World) -> None:
    """Fills the head with a linear probe of the labelled images' embeddings, in the precision of the training."""
    index = _evenly(data)
    mode = model.training
    model.eval()
    z = torch.cat([model.encoder(data.images.take(rows).to(world.device)).float() for rows in index.split(EMBED)])  # n D
    model.train(mode)
    # Weights that autocast has cast without gradient must not serve a pass with one.
    torch.clear_autocast_cache()
    label = torch.from_numpy(data.label)[index]
    with torch.autocast(world.device.type, enabled=False):
        frame = Frame(Features(z[:, None], label, data.classes, device=world.device), "l2")
        layer = fitted_layer(frame(z), probabilities(label.to(world.device), data.classes), ProbeConfig())
    assert isinstance(model.head, nn.Sequential)
    model.head[0].load_state_dict(frame[0].state_dict())
    model.head[2].load_state_dict(layer.state_dict())


def _evenly(data: TrainData) -> Tensor:
    """int64 [n]: the labelled images, class by class; where they are too many, evenly spaced ones."""
    known = np.flatnonzero(data.label >= 0)
    known = known[np.argsort(data.label[known], kind="stable")]
    place = np.linspace(0, len(known) - 1, min(len(known), MOST)).round().astype(np.int64)
    return torch.from_numpy(known[place])
