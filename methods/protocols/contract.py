"""How a trained method is scored: what a protocol takes and gives, embeddings, folds, and intervals."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from methods.contracts import Learner
from methods.data.records import IntArray, LabelledSubset
from methods.parts.encoders import Encoder
from methods.protocols.embeddings import EMBED_BATCH, batches, check_layer, embed, features_of, logits_of, pooled, run_over
from search_spaces.domains import UserError

__all__ = [
    "EMBED_BATCH", "FOLDS", "Difference", "Protocol", "Score", "Trained", "accuracy", "batches", "check_classes", "check_layer",
    "difference_of", "embed", "features_of", "folds", "logits_of", "mean_interval", "mean_score", "paired_difference",
    "part_of", "pooled", "run_over", "wilson",
]  # fmt: skip

FOLDS = 5
"""Folds of a cross-validation; fewer where a class has fewer labels."""


@dataclass(frozen=True)
class Trained:
    """What a training leaves to be scored.

    Attributes:
        encoder: images -> embeddings.
        predictor: the method's own classifier, images -> logits [B, K], or None.
        learner: the learner itself, for protocols that adapt it to episodes; None for a bare encoder.
        uses_labels: whether training read the labels of its training part, so that those cannot score it.
    """

    encoder: Encoder
    predictor: nn.Module | None = None
    learner: Learner | None = None
    uses_labels: bool = False


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier said: ``logits`` float32 [n, K], and the true ``label`` int64 [n]."""

    label: IntArray
    logits: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Score:
    """The outcome of one protocol.

    Attributes:
        protocol: its name.
        metric: what ``value`` is, for people.
        value: the score; larger is better unless the protocol's ``maximise`` is False.
        n: units that ``value`` is a mean over (images, or episodes).
        index: int64 [n], the positions that were asked (episode numbers for episodes).
        correct: bool [n], whether each was answered rightly, or None where the unit's outcome is not yes or no.
        low, high: 95% interval of ``value``.
        seconds: spent scoring.
        predictor: a classifier images -> logits fitted on the way, for export; it shares the encoder. None where there is none.
        each: float64 [n], the unit's own value (an episode's accuracy), where it is not ``correct``.
        parts: further figures by name (the curve over severities, recall at several k).
        answers: what was said of each unit, by protocols that keep their answers; else None.
    """

    protocol: str
    metric: str
    value: float
    n: int
    index: IntArray
    correct: NDArray[np.bool_] | None
    low: float
    high: float
    seconds: float
    predictor: nn.Module | None = None
    each: NDArray[np.float64] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    answers: Answers | None = None

    def units(self) -> NDArray[np.float64] | None:
        """float64 [n], what each unit contributes to ``value``; None where the score is no mean over units."""
        return self.each if self.each is not None else None if self.correct is None else self.correct.astype(np.float64)


class Protocol(ABC):
    """A way of scoring. Concrete protocols are final frozen dataclasses whose fields are their settings.

    Attributes:
        maximise: whether larger values of its scores are better.
        elsewhere: whether it asks images of another data set, whatever it is given to ask.
        answers: whether its scores keep what was said of each image, so that any metric can be made of them.
        asks_exported: whether it asks just the classifier that is exported: the method's own, else a linear probe.
    """

    name: ClassVar[str]
    maximise: ClassVar[bool] = True
    elsewhere: ClassVar[bool] = False
    answers: ClassVar[bool] = False
    asks_exported: ClassVar[bool] = False

    @abstractmethod
    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        """Scores ``trained``.

        Args:
            trained: what to score; left as it was, mode included.
            fit: labels that a probe may be fitted on.
            ask: labelled images to answer; None for a stratified cross-validation on ``fit``.
            seed: of folds and of whatever is fitted.
        Raises:
            UserError: these labels or this method cannot be scored this way.
        """


def folds(fit: LabelledSubset, seed: int, most: int = FOLDS) -> list[tuple[IntArray, IntArray]]:
    """Stratified (train, held out) rows of ``fit``; every row is held out once. The same for every method at a seed.

    Raises:
        UserError: a class has a single label, or there is only one class.
    """
    present, counts = np.unique(fit.label, return_counts=True)
    check_classes(fit)
    if counts.min() < 2:
        name = fit.data.classes[present[counts.argmin()]]
        raise UserError(f"cross-validation needs at least 2 labels of every class, class {name} has 1; raise the label budget")
    splitter = StratifiedKFold(min(most, int(counts.min())), shuffle=True, random_state=seed % 2**32)
    return [(train.astype(np.int64), held.astype(np.int64)) for train, held in splitter.split(fit.label, fit.label)]


def check_classes(fit: LabelledSubset) -> None:
    """Raises UserError unless ``fit`` has labels of at least two classes."""
    if len(np.unique(fit.label)) < 2:
        raise UserError(f"a classifier needs labels of at least 2 classes, got {len(fit)} labels of one; label another class")


def part_of(labelled: LabelledSubset, rows: IntArray) -> LabelledSubset:
    """The given rows of a labelled part."""
    return LabelledSubset(labelled.data, labelled.index[rows], labelled.label[rows])


def wilson(right: float, n: int) -> tuple[float, float]:
    """95% interval of a proportion of ``right`` out of ``n`` (Wilson 1927)."""
    z = float(stats.norm.ppf(0.975))
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    # At the ends the formula gives exactly 0 and 1, which rounding would miss.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def mean_interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values and its t-interval; without limits for a single value."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def accuracy(
    protocol: str,
    metric: str,
    index: IntArray,
    correct: NDArray[np.bool_],
    started: float,
    predictor: nn.Module | None = None,
    parts: Mapping[str, float] | None = None,
    answers: Answers | None = None,
) -> Score:
    """The score that is a share of right answers; ``started`` is the ``time.perf_counter()`` at its beginning."""
    n = len(correct)
    low, high = wilson(int(correct.sum()), n)
    seconds = time.perf_counter() - started
    return Score(
        protocol, metric, float(correct.mean()), n, index, correct, low, high, seconds, predictor, parts=dict(parts or {}),
        answers=answers,
    )  # fmt: skip


def answered(
    protocol: str, logits: Tensor, index: IntArray, label: IntArray, started: float, predictor: nn.Module | None
) -> Score:
    """The accuracy of ``logits`` float [n, K], kept as answers."""
    said = Answers(label, logits.float().cpu().numpy())
    return accuracy(protocol, "accuracy", index, said.logits.argmax(1) == label, started, predictor, answers=said)


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of scores of one kind on parts of their own (the folds of a cross-validation), each part weighing the same.

    The interval is for these parts: it holds the units' spread inside the parts and not the spread between them. Positions
    are numbered through, part by part. A single score comes back as it is.
    """
    if len(scores) == 1:
        return scores[0]
    units = [score.units() for score in scores]
    own = [values for values in units if values is not None and len(values) > 1]
    low, high = -np.inf, np.inf
    mean = float(np.mean([score.value for score in scores]))
    if len(own) == len(scores):
        error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in own)) / len(scores)
        half = float(stats.t.ppf(0.975, sum(len(values) - 1 for values in own)) * error)
        low, high = mean - half, mean + half
        if all(score.low >= 0 and score.high <= 1 for score in scores):
            low, high = max(low, 0.0), min(high, 1.0)
    correct = [score.correct for score in scores if score.correct is not None]
    each = [score.each for score in scores if score.each is not None]
    n = sum(score.n for score in scores)
    return replace(
        scores[0],
        value=mean,
        n=n,
        index=np.arange(n),
        correct=np.concatenate(correct) if len(correct) == len(scores) else None,
        low=low,
        high=high,
        seconds=sum(score.seconds for score in scores),
        predictor=None,
        each=np.concatenate(each) if len(each) == len(scores) else None,
        parts={},
        answers=None,
    )


@dataclass(frozen=True)
class Difference:
    """How much better ``a`` is than ``b`` on what both were asked.

    Attributes:
        mean: of a - b over the common units.
        low, high: 95% interval.
        n: common units.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Score, b: Score) -> Difference:
    """a - b, unit by unit over the units both were asked.

    Right-or-wrong outcomes take the adjusted Wald interval for paired proportions (Bonett & Price 2012), which stays honest
    where the two hardly disagree; other outcomes (episodes) a t-interval.

    Raises:
        UserError: the scores are of different kinds, are no means over units, or share no unit.
    """
    values_a, values_b = a.units(), b.units()
    if (a.protocol, a.metric) != (b.protocol, b.metric) or values_a is None or values_b is None:
        raise UserError(f"a paired comparison needs two scores of one kind per image, got {a.metric} and {b.metric}")
    common, rows_a, rows_b = np.intersect1d(a.index, b.index, return_indices=True)
    if len(common) == 0:
        raise UserError("a paired comparison needs images that both were asked, got none in common")
    return difference_of(values_a[rows_a] - values_b[rows_b], a.correct is not None and b.correct is not None)


def difference_of(each: NDArray[np.float64], yes_or_no: bool, level: float = 0.95) -> Difference:
    """The mean of paired differences with the interval that suits them.

    Args:
        each: float64 [n], a - b of each unit.
        yes_or_no: whether both were right or wrong on each unit, so that a difference is -1, 0 or 1. These take the
            adjusted Wald interval (Bonett & Price 2012), all others a t-interval.
        level: of the interval.
    """
    n = len(each)
    if not yes_or_no:
        return Difference(*mean_interval(each, level), n)
    more, less = ((each > 0).sum() + 1) / (n + 2), ((each < 0).sum() + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt((more + less - (more - less) ** 2) / (n + 2)))
    centre = float(more - less)
    return Difference(float(each.mean()), max(centre - half, -1.0), min(centre + half, 1.0), n)
