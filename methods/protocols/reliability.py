"""Scores of a classifier's honesty and of an encoder's neighbourhoods: calibration, retrieval, zero-shot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, runtime_checkable
from typing import Protocol as Structural

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import seed_of
from methods.data.records import LabelledSubset
from methods.protocols.contract import Protocol, Score, Trained, accuracy, embed, folds, logits_of, mean_interval, part_of
from methods.protocols.predict import guess, own_or_probe, unseen
from methods.protocols.probes import at_least
from search_spaces.domains import UserError


@dataclass(frozen=True)
class Calibration(Protocol):
    """Expected calibration error of the method's own classifier, else of a linear probe: how far confidence is from accuracy.

    Guo et al. 2017, arXiv 1706.04599. Smaller is better. The interval is from 500 bootstrap draws of the images, moved to the
    value: resampling alone adds calibration error.

    Attributes:
        bins: of equal width in confidence.
    """

    name: ClassVar[str] = "calibration"
    maximise: ClassVar[bool] = False
    bins: int = 15

    def __post_init__(self) -> None:
        at_least(self.name, "bins", self.bins, 1)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        if trained.predictor is None and ask is None:
            asked, logits = fit, torch.empty(len(fit), len(fit.data.classes))
            for train, held in folds(fit, seed):
                probe, rest = own_or_probe(trained, part_of(fit, train), seed), part_of(fit, held)
                logits[torch.from_numpy(held)] = logits_of(probe, rest.data.images, rest.index).cpu()
        else:
            asked = unseen(self.name, trained, fit, ask)
            logits = logits_of(own_or_probe(trained, fit, seed), asked.data.images, asked.index).cpu()
        confidence, answer = logits.double().softmax(1).max(1)
        label = torch.from_numpy(asked.label)
        right, sure = (answer == label).double().numpy(), confidence.numpy()
        value = calibration_error(sure, right, self.bins)
        rng = np.random.default_rng(seed_of(seed, "bootstrap"))
        n = len(asked)
        drawn = [calibration_error(sure[i], right[i], self.bins) for i in (rng.integers(0, n, n) for _ in range(500))]
        spread = np.quantile(drawn, [0.025, 0.975]) - np.mean(drawn)
        parts = {
            "accuracy": float(right.mean()),
            "confidence": float(sure.mean()),
            "log_loss": float(F.cross_entropy(logits.double(), label)),
        }
        low, high = max(value + float(spread[0]), 0.0), min(value + float(spread[1]), 1.0)
        seconds = time.perf_counter() - started
        metric = "expected calibration error"
        return Score(self.name, metric, value, n, asked.index, None, low, high, seconds, parts=parts)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Mean over the images of |accuracy - confidence| of their bin; float64 [n] each."""
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(at, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


@dataclass(frozen=True)
class Retrieval(Protocol):
    """Every image asks for the others of its class by cosine similarity. ``fit`` is not used.

    Attributes:
        metric: ``map`` (mean average precision) or ``recall`` (an image of the class is among the first k).
        k: of ``recall``; recall at 1, 5 and 10 stand in the parts in any case.
    """

    name: ClassVar[str] = "retrieval"
    metric: str = "map"
    k: int = 1

    def __post_init__(self) -> None:
        if self.metric not in ("map", "recall"):
            raise UserError(f"retrieval.metric must be map or recall, got {self.metric!r}; map is the default")
        at_least(self.name, "k", self.k, 1)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        asked = unseen(self.name, trained, fit, ask)
        label = torch.from_numpy(asked.label)
        partners = torch.bincount(label)[label] > 1
        if not bool(partners.any()):
            raise UserError("retrieval needs a class with at least 2 images to ask, got none; ask more images")
        z = F.normalize(embed(trained.encoder, asked.data.images, asked.index), dim=1)
        precision, first = ranking(z, label.to(z.device))
        keep = partners.numpy()
        index, precision, first = asked.index[keep], precision[keep], first[keep]
        parts = {"map": float(precision.mean()), **{f"recall_{k}": float((first <= k).mean()) for k in (1, 5, 10)}}
        if self.metric == "recall":
            return accuracy(self.name, f"recall at {self.k}", index, first <= self.k, started, parts=parts)
        mean, low, high = mean_interval(precision)
        seconds = time.perf_counter() - started
        name = "mean average precision"
        return Score(self.name, name, mean, len(index), index, None, max(low, 0), min(high, 1), seconds, None, precision, parts)


def ranking(z: Tensor, label: Tensor, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Of every image among all others: average precision float64 [n], and the rank, from 1, of the first of its class.

    z: unit vectors [n, D]. An image without a partner gets 0 and n.
    """
    n = len(z)
    precision, first = np.zeros(n), np.full(n, n)
    places = torch.arange(1, n + 1, device=z.device, dtype=torch.float64)
    for start in range(0, n, batch):
        rows = torch.arange(start, min(start + batch, n), device=z.device)
        similarity = z[rows] @ z.T
        similarity[torch.arange(len(rows), device=z.device), rows] = -torch.inf  # itself comes last
        hits = label[similarity.argsort(dim=1, descending=True, stable=True)] == label[rows, None]
        hits[:, -1] = False
        count = hits.sum(1)
        average = (hits.cumsum(1) / places * hits).sum(1) / count.clamp_min(1)
        precision[start : start + len(rows)] = average.cpu().numpy()
        found = hits.double().argmax(1) + 1
        first[start : start + len(rows)] = torch.where(count > 0, found, n).cpu().numpy()
    return precision, first


@runtime_checkable
class NamesClasses(Structural):
    """A learner that can classify by the classes' names alone (CLIP and its kin)."""

    def zero_shot(self, classes: Sequence[str]) -> nn.Module:
        """Images [B, C, H, W] -> logits over the named classes, without training on any of their labels."""


@dataclass(frozen=True)
class ZeroShot(Protocol):
    """Accuracy of a classifier made from the classes' names. ``fit`` is not used. Only for methods with a text tower."""

    name: ClassVar[str] = "zero_shot"

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        if not isinstance(trained.learner, NamesClasses):
            raise UserError("zero_shot needs a method that learns from text, such as clip; score this one by predict")
        asked = ask if ask is not None else fit
        predictor = trained.learner.zero_shot(asked.data.classes)
        correct = guess(predictor, asked) == asked.label
        return accuracy(self.name, "zero-shot accuracy", asked.index, correct, started, predictor)
