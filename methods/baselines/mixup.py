"""MixUp: cross-entropy on convex mixes of labelled images and of their labels.

Zhang et al. 2017, "mixup: beyond empirical risk minimization", arXiv:1710.09412.

Deviations: lambda is drawn for each image, not for each batch (as MixMatch does). AdamW instead of SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.baselines import supervised
from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.losses import mixup
from methods.parts.mixup import shuffled
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(supervised.Config):
    """Knobs: the supervised yardstick's, and alpha."""

    alpha: float = knob(
        0.2, Float(0.05, 2.0, log=True), legal=Float(1e-3, 100), doc="lambda ~ Beta(alpha, alpha)", source="Zhang 2017: .2 to 1"
    )


class MixUp(Learner):
    """A classifier trained on mixes."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.classes = config, context.classes
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c, batch, world = self.config, step.from_labelled(), step.world
        x = self.augment(batch.images, batch.stream.fork("views"))  # B C H W
        p = F.one_hot(batch.labels(), self.classes).float()  # B K
        order = batch.stream.fork("partners").permutation()  # B of all workers
        share = batch.stream.fork("lambda").beta(c.alpha)  # B
        (x_other,), (p_other,) = (shuffled([own], [batch.stream.rows], order, world) for own in (x, p))
        x_mixed, p_mixed = mixup(x, p, x_other, p_other, share)  # B C H W, B K
        return Loss(F.cross_entropy(self.model(x_mixed), p_mixed, label_smoothing=c.label_smoothing))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = self.augment(batch.images, batch.stream.fork("views"))
        share = batch.stream.fork("lambda").beta(self.config.alpha)
        mixed, _ = mixup(x, x.flatten(1), x.flip(0), x.flatten(1), share)
        return {"image, partner, mix": torch.cat([x, x.flip(0), mixed], dim=3)}


METHOD = Method(
    name="mixup",
    family="baseline",
    paper="Zhang et al. 2017, arXiv:1710.09412",
    summary="cross-entropy on convex mixes of images and labels",
    config=Config,
    learner=MixUp,
    uses_labels=True,
)
