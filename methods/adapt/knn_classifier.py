"""kNN classifier: the labelled images nearest to a frozen encoder's embedding vote.

Cover & Hart 1967, "Nearest neighbor pattern classification"; votes weighted by exp(cosine / temperature) as in Wu et al. 2018,
"Unsupervised feature learning via non-parametric instance discrimination", arXiv:1805.01978.

Deviations: features are framed by the pool's moments before their cosines are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from methods.adapt.shared import Frame, FramedConfig
from methods.contracts import Method
from methods.features import Features
from methods.parts.heads import NeighbourHead
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(FramedConfig):
    """Knobs."""

    k: int = knob(10, Int(1, 100, log=True), legal=Int(1, 100_000), doc="neighbours that vote", source="Wu 2018: 200 of 1.3 M")
    temperature: float = knob(
        0.07, Float(0.01, 1.0, log=True), legal=Float(1e-3, 100), doc="of the votes' softmax over similarities",
        source="Wu 2018: .07",
    )  # fmt: skip


def fit(config: Config, features: Features) -> nn.Module:
    """The labelled images as a head, features [B, D] -> logits [B, K]."""
    x, label = features.labelled()  # n D, n
    frame = Frame(features, config.standardise)
    return nn.Sequential(*frame, NeighbourHead(frame(x), label, features.classes, config.k, config.temperature))


METHOD = Method(
    name="knn_classifier",
    family="adapt",
    paper="Cover & Hart 1967; Wu et al. 2018, arXiv:1805.01978",
    summary="nearest labelled images vote, on a frozen encoder's features",
    config=Config,
    fit=fit,
    uses_labels=True,
)
