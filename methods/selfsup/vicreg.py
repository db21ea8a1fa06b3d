"""VICReg: variance, invariance and covariance, each by its own term.

Bardes, Ponce & LeCun 2022, "VICReg: variance-invariance-covariance regularization", arXiv:2105.04906. With S the mean squared
distance of two views, V the hinge max(0, 1 - sd) averaged over units, and C the sum of squared off-diagonal covariances over D:
weight x (S + variance x V) + covariance_weight x C. The paper's lambda and mu are tied, as it finds best; `variance` is their
ratio, 0 of which lets the embedding collapse. Moments are those of the global batch.

Deviations: AdamW instead of LARS; the simclr augmentation for both views; an expander of `head_width` units, not 8192.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.losses import vicreg_terms
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    weight: float = knob(
        25.0, Float(5.0, 100.0, log=True), legal=Float(0.0, 1e4), doc="lambda = mu, of invariance and variance",
        source="Bardes 2022: 25, tied",
    )  # fmt: skip
    covariance_weight: float = knob(1.0, None, legal=Float(0.0, 1e4), doc="nu, of the covariance term", source="Bardes 2022: 1")
    variance: float = knob(1.0, None, legal=Float(0.0, 100.0), doc="mu / lambda; 0 collapses", source="Bardes 2022: 1")
    head_width: int = knob(
        512, None, legal=Int(2, 16384), unit="units", doc="width of the expander", source="Bardes 2022: 8192"
    )


class VICReg(Learner):
    """Encoder and expander."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.head: nn.Module = mlp(self.backbone.dim, config.head_width, config.head_width, 3, norm=True)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        views = torch.cat(two_views(self.augment, step.from_pool()))  # 2B C H W
        one, two = self.head(self.backbone(views)).chunk(2)  # B D each
        s, v, cov = vicreg_terms(one, two, step.world)
        total = c.weight * (s + c.variance * v) + c.covariance_weight * cov
        return Loss(total, {"invariance": s.detach(), "variance": v.detach(), "covariance": cov.detach()})

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="vicreg",
    family="selfsup",
    paper="Bardes et al. 2022, arXiv:2105.04906",
    summary="keep variance, bring views together, decorrelate units",
    config=Config,
    learner=VICReg,
)
