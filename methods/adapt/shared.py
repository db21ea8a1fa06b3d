"""What methods on frozen features have in common: how features are framed before anything is fitted on them.

n rows, B batch, D embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from methods.contracts import VIEWS, FeatureConfig
from methods.features import Features
from methods.parts.heads import NEVER, UnitLength
from methods.parts.logistic import fit_logistic
from search_spaces.domains import SWITCH, Choice, Float, Int, knob

FRAMES = Choice(("none", "centre", "standardise", "l2"))


@dataclass(frozen=True)
class FramedConfig(FeatureConfig):
    """Of methods that compare features."""

    standardise: str = knob(
        "l2", FRAMES, doc="features as they are, centred, with standard deviation 1 each, or centred and of unit length",
        source="pilot on CIFAR-10: l2 +1 point over standardise",
    )  # fmt: skip


@dataclass(frozen=True)
class ProbeConfig(FramedConfig):
    """Of methods that fit a logistic regression."""

    c: float = knob(
        10.0, Float(0.03, 300.0, log=True), legal=Float(1e-6, 1e6),
        doc="inverse l2 penalty, of features scaled to a mean squared length of 1", source="pilot on CIFAR-10: 10",
    )  # fmt: skip
    intercept: bool = knob(False, SWITCH, doc="whether the classes have a bias of their own", source="pilot on CIFAR-10: none")
    balance: bool = knob(True, SWITCH, doc="every class weighs the same, however many labels it has", source="King & Zeng 2001")


@dataclass(frozen=True)
class FrozenConfig(FramedConfig):
    """Of methods for images that are trained on features by their own code; what they restate here suits rows of features.

    Augmentation is one of the views by lot, and noise.
    """

    views: str = knob(
        "averaged", VIEWS, doc="as elsewhere; augmented draws one of them in each step", source="as the other rows on features"
    )
    lr: float = knob(
        6e-2, Float(6e-3, 0.3, log=True), legal=Float(1e-8, 100), unit="per 256 labelled rows", doc="learning rate of AdamW",
        source="cross-validation on CIFAR-10, 250 labels",
    )  # fmt: skip
    steps: int = knob(300, Int(100, 1000, log=True), legal=Int(1, 10**6), doc="of gradient descent", source="this project")
    weight_decay: float = knob(
        1e-2, Float(1e-4, 0.3, log=True), legal=Float(0, 10), doc="decoupled weight decay", source="Loshchilov & Hutter 2019"
    )


class Frame(nn.Sequential):
    """How features [B, D] are framed: shifted and scaled by the pool's moments, and where ``l2`` cut to unit length."""

    def __init__(self, features: Features, how: str) -> None:
        norm = nn.BatchNorm1d(features.dim, affine=False)
        var = torch.ones(features.dim)
        if how != "none":
            mean, std = features.moments()
            norm.running_mean = mean.clone()
            # A feature that is the same everywhere is left at 0.
            var = torch.where(std > 1e-6, std, 1).square() if how == "standardise" else var
        # The layer adds its epsilon, which is taken off before.
        norm.running_var = (var - norm.eps).clamp_min(0)
        super().__init__(norm.to(features.device), *([UnitLength()] if how == "l2" else []))
        self.eval()
        self.linear = how != "l2"


def fitted_layer(
    x: Tensor, target: Tensor, config: ProbeConfig, weight: Tensor | None = None, classes: int | None = None
) -> nn.Linear:
    """A logistic regression as a layer over framed features.

    Args:
        x: float [n, D], framed.
        target: float [n, K], rows of probabilities.
        config: its penalty, intercept and balance.
        weight: [n] of the rows, before the classes are balanced; None for 1 each.
    """
    scale = float(x.square().sum(1).mean().sqrt().clamp_min(1e-12))
    mass = target.sum(0) if weight is None else weight @ target
    present = mass > 1e-9
    v = torch.ones_like(target[:, 0]) if weight is None else weight
    if config.balance:
        share = torch.where(present, mass.sum() / (present.sum() * mass.clamp_min(1e-9)), 0)
        v = v * (target @ share)
    w, b = fit_logistic(x / scale, target[:, present], config.c, intercept=config.intercept, weight=v)
    layer: nn.Linear = skip_init(nn.Linear, x.shape[1], len(mass), device=x.device)  # the global random state stays as it is
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(NEVER)
        layer.weight[present] = (w / scale).float()
        layer.bias[present] = b.float()
    return layer


def head_of(frame: Frame, layer: nn.Linear) -> nn.Module:
    """Frame and layer as one head; one layer where the frame is linear."""
    if not frame.linear:
        return nn.Sequential(*frame, layer)
    norm = frame[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        weight = layer.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        layer.bias.sub_(weight @ norm.running_mean.double())
        layer.weight.copy_(weight)
    return layer


def probabilities(label: Tensor, classes: int) -> Tensor:
    """float32 [n, K], 1 at each row's label."""
    return F.one_hot(label, classes).float()
