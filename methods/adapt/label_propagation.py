"""Label propagation: labels spread to the pool along its nearest neighbours, and a probe learns from what they reach.

Zhou et al. 2004, "Learning with local and global consistency", NeurIPS 16, on a graph of cosines to a power as in Iscen et al.
2019, "Label propagation for deep semi-supervised learning", arXiv:1904.04717: F = (1 - alpha) (I - alpha S)^-1 Y.

Deviations: the answer for new images is a probe's, so that it needs no graph: in every round propagation and probe guess the
pool together (the mean of both), the surest images of every class get their guess as label, and the next probe and the next
propagation start from these too. Columns of F are brought to the same sum (class mass normalisation, Zhu 2003).
Neighbours are looked for along the features' first principal components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapt.shared import Frame, ProbeConfig, fitted_layer, head_of, probabilities
from methods.contracts import Method
from methods.features import Features
from methods.parts.neighbours import diffusion, nearest, principal, spread
from search_spaces.domains import Float, Int, knob

MOST = 50
"""Neighbours that are looked for, once for all trials; a trial uses the nearest k of them."""

COMPONENTS = 128
"""Principal components along which neighbours are looked for: of 1,280 features in a third of the time."""


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Knobs."""

    k: int = knob(15, Int(5, MOST, log=True), legal=Int(1, MOST), doc="neighbours in the graph", source="Iscen 2019: 50")
    alpha: float = knob(
        0.9, Float(0.5, 0.99, log1m=True), legal=Float(0.0, 0.9999), doc="how far labels spread", source="Zhou 2004: .99"
    )
    gamma: float = knob(3.0, Float(1.0, 5.0), legal=Float(0.0, 20.0), doc="power of the cosines", source="Iscen 2019: 3")
    share: float = knob(
        0.25, Float(0.05, 0.6, log=True), legal=Float(0.0, 1.0), unit="share of the pool", doc="images that get a pseudo-label",
        source="pilot on CIFAR-10",
    )  # fmt: skip
    weight: float = knob(
        1.0, Float(0.2, 10.0, log=True), legal=Float(1e-3, 1e4), doc="of all pseudo-labels together, over that of all labels",
        source="pilot on CIFAR-10",
    )  # fmt: skip
    rounds: int = knob(1, Int(1, 3), legal=Int(1, 20), doc="times the pool gets pseudo-labels", source="Lee 2013")


def neighbours(features: Features) -> tuple[Tensor, Tensor]:
    """``nearest`` of the pool, centred, along its principal components, and of unit length: made once in a process."""
    return features.remembered("neighbours", lambda: nearest(_compressed(features), MOST))


def _compressed(features: Features) -> Tensor:
    return F.normalize(principal(Frame(features, "centre")(features.pool()), COMPONENTS), dim=1)


def propagated(s: Tensor, target: Tensor, alpha: float) -> Tensor:
    """float32 [N, K], rows of probabilities: labels ``target`` [N, K], zero rows where there is none, spread along ``s``."""
    f = spread(s, target, alpha).clamp_min(0)
    f = f / f.sum(0).clamp_min(1e-12)
    total = f.sum(1, keepdim=True)
    # An image that no label reaches could be anything.
    return torch.where(total > 1e-20, f / total.clamp_min(1e-20), 1 / f.shape[1])


def surest(q: Tensor, free: Tensor, count: int) -> Tensor:
    """int64 [m]: of the images that are ``free``, bool [N], the surest ``count`` / K of every class that q [N, K] guesses."""
    confidence, guess = q.max(1)
    each = max(1, count // q.shape[1])
    chosen = []
    for k in range(q.shape[1]):
        mine = torch.nonzero(free & (guess == k)).flatten()
        chosen.append(mine[confidence[mine].topk(min(each, len(mine))).indices])
    return torch.cat(chosen)


def fit(config: Config, features: Features) -> nn.Module:
    """The last round's probe, features [B, D] -> logits [B, K]."""
    x, label = features.labelled()  # n D, n
    frame = Frame(features, config.standardise)
    x, known = frame(x), probabilities(label, features.classes)  # n D, n K
    layer = fitted_layer(x, known, config)
    value, index = neighbours(features)
    s = diffusion(value[:, : config.k], index[:, : config.k], config.gamma)
    pool = frame(features.pool())  # N D
    given = features.label.to(x.device)
    free = given < 0
    y = torch.zeros(len(features), features.classes, device=x.device)
    y[~free] = probabilities(given[~free], features.classes)
    target = y
    for _ in range(config.rounds):
        with torch.no_grad():
            q = (layer(pool).softmax(1) + propagated(s, target, config.alpha)) / 2  # N K
        taken = surest(q, free, int(config.share * int(free.sum())))
        if not len(taken):
            break
        guess = probabilities(q[taken].argmax(1), features.classes)  # m K
        target = y.index_copy(0, taken, guess)
        light = torch.full((len(taken),), config.weight * len(x) / len(taken), device=x.device)
        weight = torch.cat([torch.ones(len(x), device=x.device), light])
        layer = fitted_layer(torch.cat([x, pool[taken]]), torch.cat([known, guess]), config, weight)
    return head_of(frame, layer)


METHOD = Method(
    name="label_propagation",
    family="adapt",
    paper="Zhou et al. 2004, NeurIPS 16; Iscen et al. 2019, arXiv:1904.04717",
    summary="labels spread along nearest neighbours, on a frozen encoder's features",
    config=Config,
    fit=fit,
    uses_labels=True,
)
