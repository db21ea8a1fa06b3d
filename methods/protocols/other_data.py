"""Scores on data that training never saw: transfer to another data set, outliers told from the study's own images."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from scipy import stats
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

from methods.batch import seed_of
from methods.data.records import ArrayImages, ImageSet, LabelledSubset
from methods.data.sources import load
from methods.protocols.contract import Protocol, Score, Trained, embed, logits_of
from methods.protocols.fine_tune import FineTune
from methods.protocols.predict import own_or_probe, unseen
from methods.protocols.probes import Knn, Linear, at_least
from search_spaces.domains import UserError


def _labelled(data: ImageSet, most: int, seed: int, name: str) -> LabelledSubset:
    """At most ``most`` labelled images of a set, class-balanced as the set is."""
    index = np.flatnonzero(data.label >= 0)
    if len(index) > most:
        index, _ = train_test_split(
            index, train_size=most, stratify=data.label[index], random_state=seed_of(seed, name) % 2**32
        )
    index = np.sort(index).astype(np.int64)
    return LabelledSubset(data, index, data.label[index])


@dataclass(frozen=True)
class Transfer(Protocol):
    """Accuracy of the frozen (or fine-tuned) encoder on another data set, resized to the images it was trained on.

    Neither ``fit`` nor ``ask`` is used but for the images' shape. Without a test part of its own the set is divided in two.

    Attributes:
        data: the other set, named as a study names data.
        by: ``linear``, ``knn`` or ``fine_tune``, with their defaults.
        labels: the most labels that the probe is fitted on.
        asked: the most images that are asked.
    """

    name: ClassVar[str] = "transfer"
    elsewhere: ClassVar[bool] = True
    data: str = "digits"
    by: Literal["linear", "knn", "fine_tune"] = "linear"
    labels: int = 1000
    asked: int = 5000

    def __post_init__(self) -> None:
        at_least(self.name, "labels", self.labels, 2)
        at_least(self.name, "asked", self.asked, 1)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        channels, height, width = fit.data.images.shape
        source = load(self.data, size=(height, width), channels=channels)
        if source.test is None:
            index = np.flatnonzero(source.train.label >= 0)
            halves = train_test_split(
                index, test_size=0.5, stratify=source.train.label[index], random_state=seed_of(seed, "halves") % 2**32
            )
            first, second = (_only(source.train, half) for half in halves)
        else:
            first, second = source.train, source.test
        base: Protocol = {"linear": Linear(), "knn": Knn(), "fine_tune": FineTune()}[self.by]
        few, asked = _labelled(first, self.labels, seed, "fit"), _labelled(second, self.asked, seed, "ask")
        score = base.score(Trained(trained.encoder), few, asked, seed)
        return replace(
            score, protocol=self.name, metric=f"accuracy on {self.data}, {self.by}", parts={"labels": float(len(few))}
        )


def _only(data: ImageSet, rows: np.ndarray) -> ImageSet:
    """The same images, with labels shown for these rows alone."""
    label = np.full(len(data), -1, dtype=np.int64)
    label[rows] = data.label[rows]
    return replace(data, label=label)


@dataclass(frozen=True)
class Ood(Protocol):
    """How well outliers are told from the study's own images: area under the ROC curve.

    Attributes:
        out: the outliers, a data set named as a study names data, or ``noise`` for uniform noise.
        outlier: what rates an image: one minus the largest softmax probability (``msp``, Hendrycks & Gimpel 2017), the negative
            log-sum-exp of the logits (``energy``, Liu 2020), or the distance to the k-th labelled neighbour (``knn``,
            Sun 2022).
        k: of ``knn``.
        most: the most outliers that are looked at.
    """

    name: ClassVar[str] = "ood"
    out: str = "noise"
    outlier: Literal["msp", "energy", "knn"] = "msp"
    k: int = 5
    most: int = 2000

    def __post_init__(self) -> None:
        at_least(self.name, "k", self.k, 1)
        at_least(self.name, "most", self.most, 2)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        asked = unseen(self.name, trained, fit, ask)
        if ask is None and (trained.predictor is None or self.outlier == "knn"):
            raise UserError("ood fits on the labels and cannot ask them too; give it a validation part to ask")
        outliers = self._outliers(fit, seed)
        rates = self._rates(trained, fit, seed, [asked, outliers])
        value, low, high = auroc(*rates)
        seconds = time.perf_counter() - started
        metric = f"AUROC against {self.out}, {self.outlier}"
        return Score(self.name, metric, value, len(asked), asked.index, None, low, high, seconds)

    def _outliers(self, fit: LabelledSubset, seed: int) -> LabelledSubset:
        channels, height, width = fit.data.images.shape
        if self.out == "noise":
            rng = np.random.default_rng(seed_of(seed, "noise"))
            pixels = rng.integers(0, 256, (min(self.most, 500), height, width, channels)).astype(np.uint8)
            data = ImageSet(ArrayImages(pixels), np.full(len(pixels), -1, dtype=np.int64), ())
        else:
            data = load(self.out, size=(height, width), channels=channels).train
        index = np.random.default_rng(seed_of(seed, "outliers")).permutation(len(data))[: self.most]
        index = np.sort(index).astype(np.int64)
        return LabelledSubset(data, index, data.label[index])

    def _rates(self, trained: Trained, fit: LabelledSubset, seed: int, sets: list[LabelledSubset]) -> list[np.ndarray]:
        """For each set float64 [n], larger for what looks like an outlier."""
        if self.outlier == "knn":
            bank = F.normalize(embed(trained.encoder, fit.data.images, fit.index), dim=1)
            k = min(self.k, len(bank))
            found = [F.normalize(embed(trained.encoder, s.data.images, s.index), dim=1) for s in sets]
            return [(1 - (z @ bank.T).topk(k, dim=1).values[:, -1]).double().cpu().numpy() for z in found]
        predictor: nn.Module = own_or_probe(trained, fit, seed)
        logits = [logits_of(predictor, s.data.images, s.index).double() for s in sets]
        if self.outlier == "msp":
            return [(1 - x.softmax(1).amax(1)).cpu().numpy() for x in logits]
        return [(-x.logsumexp(1)).cpu().numpy() for x in logits]


def auroc(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float, float]:
    """Share of pairs in which the outlier is rated higher, ties a half, and its 95% interval (DeLong 1988)."""
    m, n = len(inside), len(outside)
    ranks = stats.rankdata(np.concatenate([outside, inside]))
    # Placement of every outlier among the inliers, and of every inlier among the outliers.
    up = (ranks[:n] - stats.rankdata(outside)) / m
    down = 1 - (ranks[n:] - stats.rankdata(inside)) / n
    value = float(up.mean())
    error = float(np.sqrt((up.var(ddof=1) if n > 1 else 0.25) / n + (down.var(ddof=1) if m > 1 else 0.25) / m))
    half = float(stats.norm.ppf(0.975)) * error
    return value, max(value - half, 0.0), min(value + half, 1.0)
