"""Supervised: cross-entropy on the labelled images alone, the yardstick of every method that also sees unlabelled ones.

Label smoothing from Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", arXiv:1512.00567.

Deviations: none; the augmentation is a knob, so that the yardstick may have whatever the methods it is held against have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, SharedConfig
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SharedConfig):
    """Knobs."""

    lr: float = knob(
        8e-3, Float(5e-4, 6e-2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Loshchilov & Hutter 2019",
    )  # fmt: skip
    batch_size: int = knob(
        64, Int(16, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="labelled images per step",
        source="Sohn 2020: 64",
    )  # fmt: skip
    label_smoothing: float = knob(
        0.0,
        Float(0.0, 0.3),
        legal=Float(0.0, 0.99),
        doc="share of the target spread over all classes",
        source="Szegedy 2016: .1",
    )
    augmentation: str = knob("weak", Choice(("weak", "strong", "simclr", "crop_flip")), doc="augmentation recipe", source="S3")

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.batch_size)

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay)


class Supervised(Learner):
    """A classifier and its cross-entropy."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        x = self.augment(batch.images, batch.stream)  # B C H W
        logits = self.model(x)  # B K
        loss = F.cross_entropy(logits, batch.labels(), label_smoothing=self.config.label_smoothing)
        right = (logits.detach().argmax(1) == batch.labels()).float().mean()
        return Loss(loss, {"train_accuracy": right})

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = self.augment(batch.images, batch.stream)
        return {"original and augmented": torch.cat([batch.images.float() / 255, x], dim=3)}


METHOD = Method(
    name="supervised",
    family="baseline",
    paper="cross-entropy; label smoothing: Szegedy et al. 2016, arXiv:1512.00567",
    summary="cross-entropy on the labelled images only",
    config=Config,
    learner=Supervised,
    uses_labels=True,
)
