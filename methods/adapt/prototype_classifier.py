"""Prototype classifier: the class whose mean embedding is nearest, by a frozen encoder.

Mensink et al. 2013, "Distance-based image classification: generalizing to new classes at near-zero cost", TPAMI (nearest class
mean); with cosines, weights imprinted as class means: Qi, Brown & Lowe 2018, arXiv:1712.07136, and the cosine head of Chen et
al. 2019, arXiv:1904.04232.

Deviations: features are framed by the pool's moments; no metric is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from methods.adapt.shared import Frame, FramedConfig, head_of, probabilities
from methods.contracts import Method
from methods.features import Features
from methods.parts.heads import NEVER, CosineHead
from search_spaces.domains import Choice, Float, knob


@dataclass(frozen=True)
class Config(FramedConfig):
    """Knobs."""

    distance: str = knob(
        "cosine", Choice(("cosine", "euclidean")), doc="between an image and a class's mean", source="Qi 2018; Mensink 2013"
    )
    temperature: float = knob(
        0.1, Float(0.02, 1.0, log=True), legal=Float(1e-3, 100),
        doc="of the softmax over similarities: how sure it is, not which class", source="Chen 2019: .1",
    )  # fmt: skip


def class_means(x: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """float [K, D], zero for a class without a row, and bool [K], which classes have one."""
    one_hot = probabilities(label, classes)
    count = one_hot.sum(0)
    return one_hot.T @ x / count.clamp_min(1)[:, None], count > 0


def fit(config: Config, features: Features) -> nn.Module:
    """The class means as a head, features [B, D] -> logits [B, K]."""
    x, label = features.labelled()  # n D, n
    frame = Frame(features, config.standardise)
    x = frame(x)
    mean, present = class_means(x, label, features.classes)  # K D, K
    if config.distance == "cosine":
        with torch.random.fork_rng(devices=[]):
            head = CosineHead(mean.shape[1], int(present.sum()), config.temperature).to(x.device)
        with torch.no_grad():
            head.weight.copy_(mean[present])
        return nn.Sequential(*frame, head, *_spread(present))
    # -|x - m|^2 / temperature, without |x|^2, which is the same for every class; in units of the mean squared length.
    scale = config.temperature * x.square().sum(1).mean().clamp_min(1e-12)
    layer: nn.Linear = skip_init(nn.Linear, *mean.T.shape, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(2 * mean / scale)
        layer.bias.copy_(torch.where(present, -mean.square().sum(1) / scale, NEVER))
    return head_of(frame, layer)


def _spread(present: Tensor) -> list[nn.Module]:
    """A layer from the logits of the classes that have a label to all, where some have none: those never win."""
    if bool(present.all()):
        return []
    layer: nn.Linear = skip_init(nn.Linear, int(present.sum()), len(present), device=present.device)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(len(present), device=present.device)[:, present])
        layer.bias.copy_(torch.where(present, 0.0, NEVER))
    return [layer]


METHOD = Method(
    name="prototype_classifier",
    family="adapt",
    paper="Mensink et al. 2013, TPAMI; Qi et al. 2018, arXiv:1712.07136",
    summary="nearest class mean on a frozen encoder's features",
    config=Config,
    fit=fit,
    uses_labels=True,
)
