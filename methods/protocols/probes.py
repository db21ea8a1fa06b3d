"""Scores of frozen features: the linear probe (logistic, SVM or MLP, on any layer) and weighted nearest neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from methods.data.records import IntArray, LabelledSubset
from methods.protocols.contract import Protocol, Score, Trained, answered, check_classes, embed, folds
from methods.protocols.heads import Classifier, NeighbourHead, linear_head, mlp_head
from search_spaces.domains import UserError

HeadFit = Callable[[Tensor, IntArray], nn.Module]
"""Features [n, D] and labels [n] -> a head, features -> logits [B, K], on the features' device."""


def at_least(protocol: str, name: str, value: float, least: float) -> None:
    """Raises UserError unless a setting is at least ``least``."""
    if not value >= least:
        raise UserError(f"{protocol}.{name} must be at least {least:g}, got {value:g}")


def above_zero(protocol: str, name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{protocol}.{name} must be above 0, got {value:g}")


def score_head(
    protocol: str,
    trained: Trained,
    fit: LabelledSubset,
    ask: LabelledSubset | None,
    seed: int,
    layer: str | None,
    fit_head: HeadFit,
) -> Score:
    """The accuracy of a head on frozen features: on ``ask``, or by stratified cross-validation on ``fit``.

    Images are embedded once. The predictor that comes back is fitted on all of ``fit`` and shares
    the encoder, whose mode it has: switch it to evaluation before use elsewhere.
    """
    started = time.perf_counter()
    check_classes(fit)
    x = embed(trained.encoder, fit.data.images, fit.index, layer=layer)
    head = fit_head(x, fit.label)
    predictor = Classifier(trained.encoder, head, layer)
    if ask is not None:
        logits = _said(head, embed(trained.encoder, ask.data.images, ask.index, layer=layer))
        return answered(protocol, logits, ask.index, ask.label, started, predictor)
    parts = folds(fit, seed)
    held_out = [
        _said(fit_head(x[torch.from_numpy(train)], fit.label[train]), x[torch.from_numpy(held)]) for train, held in parts
    ]
    order = torch.from_numpy(np.concatenate([held for _, held in parts])).to(x.device)
    logits = torch.empty_like(torch.cat(held_out)).index_copy_(0, order, torch.cat(held_out))
    return answered(protocol, logits, fit.index, fit.label, started, predictor)


def _said(head: nn.Module, x: Tensor) -> Tensor:
    """float [n, K]."""
    with torch.no_grad():
        out: Tensor = head(x)
    return out


@dataclass(frozen=True)
class Linear(Protocol):
    """A linear classifier on frozen, standardised features.

    Attributes:
        layer: one of the encoder's layers, globally pooled; None for the embedding itself.
        head: ``logistic``, ``svm`` (hinge loss, one against rest) or ``mlp`` (one hidden layer).
        c: inverse L2 penalty of logistic and svm on standardised features.
        tune: choose the penalty by an inner cross-validation instead; 13 times the work.
        hidden: units of the MLP's hidden layer.
    """

    name: ClassVar[str] = "linear"
    answers: ClassVar[bool] = True
    layer: str | None = None
    head: Literal["logistic", "svm", "mlp"] = "logistic"
    c: float = 0.05
    tune: bool = False
    hidden: int = 256

    def __post_init__(self) -> None:
        above_zero(self.name, "c", self.c)
        at_least(self.name, "hidden", self.hidden, 1)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        classes = len(fit.data.classes)

        def fit_head(x: Tensor, label: IntArray) -> nn.Module:
            features = x.cpu().numpy()
            if self.head == "mlp":
                return mlp_head(features, label, classes, self.hidden, seed).to(x.device)
            c = None if self.tune else self.c
            return linear_head(features, label, classes, c, self.head == "svm", seed).to(x.device)

        return score_head(self.name, trained, fit, ask, seed, self.layer, fit_head)


@dataclass(frozen=True)
class Knn(Protocol):
    """Nearest neighbours by cosine similarity, weighted by exp(similarity / temperature) (Wu 2018, arXiv 1805.01978).

    Attributes:
        k: neighbours that vote; all of them where there are fewer labels.
        temperature: of the votes.
        layer: one of the encoder's layers, globally pooled; None for the embedding itself.
    """

    name: ClassVar[str] = "knn"
    answers: ClassVar[bool] = True
    k: int = 20
    temperature: float = 0.07
    layer: str | None = None

    def __post_init__(self) -> None:
        at_least(self.name, "k", self.k, 1)
        above_zero(self.name, "temperature", self.temperature)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        classes = len(fit.data.classes)

        def fit_head(x: Tensor, label: IntArray) -> nn.Module:
            return NeighbourHead(x, torch.from_numpy(label), classes, self.k, self.temperature)

        return score_head(self.name, trained, fit, ask, seed, self.layer, fit_head)
