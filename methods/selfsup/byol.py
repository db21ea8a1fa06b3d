"""BYOL: predict what a slow copy of yourself says of another view; no negatives.

Grill et al. 2020, "Bootstrap your own latent", arXiv:2006.07733. The loss is the squared distance of normalised vectors,
2 - 2 cos, over both orders of the two views; the target's momentum goes from its base to 1 by a cosine.
Without its predictor the method collapses: `predictor` False shows it.

Deviations: AdamW instead of LARS; the simclr augmentation for both views, without the paper's asymmetric solarisation;
projection and prediction heads as wide as `head_width`, not 4096. Momentum for short trainings, see its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.ramps import cosine_momentum
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import SWITCH, Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    momentum: float = knob(
        0.99, Float(0.9, 0.999, log1m=True), legal=Float(0.0, 0.999999), doc="of the target at the start; ends at 1",
        source="Grill 2020: .996 over 1000 epochs, .99 over 100",
    )  # fmt: skip
    head_hidden: int = knob(
        512, None, legal=Int(1, 16384), unit="units", doc="hidden width of both heads", source="Grill 2020: 4096"
    )
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the projection", source="Grill 2020: 256")
    predictor: bool = knob(
        True, None, legal=SWITCH, doc="predict the target's projection; False collapses", source="Grill 2020"
    )


def regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of the squared distance of normalised vectors, 2 - 2 cos; both [B, D], no gradient to the second."""
    p, t = F.normalize(prediction.float(), dim=1), F.normalize(target.detach().float(), dim=1)
    return (2 - 2 * (p * t).sum(1)).mean()


class BYOL(Learner):
    """The online network, its slow copy, and the predictor between them."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        hidden, width = config.head_hidden, config.head_width
        self.online = nn.Sequential(self.backbone, mlp(self.backbone.dim, hidden, width, 2, norm=True))
        self.predict: nn.Module = mlp(width, hidden, width, 2, norm=True) if config.predictor else nn.Identity()
        self.target = Ema(self.online)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        one, two = two_views(self.augment, step.from_pool())
        p = self.predict(self.online(torch.cat([one, two])))  # 2B D
        t = self.target(torch.cat([two, one]))  # 2B D, the other view, no gradient
        distance = regression(p, t)
        return Loss(2 * distance, {"teacher_student_cosine": (1 - distance / 2).detach()})

    def after_step(self, step: Step) -> None:
        self.target.update(self.online, cosine_momentum(self.config.momentum, step.progress))

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.online[1]

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="byol",
    family="selfsup",
    paper="Grill et al. 2020, arXiv:2006.07733",
    summary="predict a slow copy of yourself across views, without negatives",
    config=Config,
    learner=BYOL,
)
