"""Barlow Twins: the cross-correlation of two views' embeddings becomes the identity.

Zbontar, Jing, Misra, LeCun & Deny 2021, "Barlow twins: self-supervised learning via redundancy reduction", arXiv:2103.03230.
C is the D x D correlation over the global batch; the loss is sum_i (1 - C_ii)^2 + lambda sum_(i != j) C_ij^2.

Deviations: AdamW instead of LARS, which undoes the scale of the loss; the simclr augmentation for both views; a projection
of `head_width` units instead of 8192.
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
from methods.parts.losses import barlow
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    redundancy_weight: float = knob(
        0.005, Float(1e-3, 0.03, log=True), legal=Float(0.0, 10.0), doc="lambda, weight of the off-diagonal terms",
        source="Zbontar 2021: .005",
    )  # fmt: skip
    head_width: int = knob(
        512, None, legal=Int(2, 16384), unit="units", doc="width of the projection and its hidden layers",
        source="Zbontar 2021: 8192",
    )  # fmt: skip


class BarlowTwins(Learner):
    """Encoder and projection."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.head: nn.Module = mlp(self.backbone.dim, config.head_width, config.head_width, 3, norm=True)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        views = torch.cat(two_views(self.augment, step.from_pool()))  # 2B C H W
        one, two = self.head(self.backbone(views)).chunk(2)  # B D each
        return Loss(barlow(one, two, self.config.redundancy_weight, step.world))

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="barlow_twins",
    family="selfsup",
    paper="Zbontar et al. 2021, arXiv:2103.03230",
    summary="make two views' cross-correlation the identity",
    config=Config,
    learner=BarlowTwins,
)
