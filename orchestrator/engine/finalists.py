"""The finalists of a study as its history tells them, and how two of them compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.protocols.contract import Difference, difference_of
from orchestrator.engine.history import History
from orchestrator.engine.records import Rung, TestScore, Trial

ONE_SD = 0.6827
"""Level of an interval of one standard error to both sides."""

Units = Mapping[int, NDArray[np.float64]]
"""By fold: what each judged image or episode contributes, the mean over repeats."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that the folds judge.

    Attributes:
        trial: the search's trial.
        judged: its finished trainings that a fold judged, in the order started.
        refits: its trainings on the whole budget that finished.
        tests: test scores of the refits, or of the judged where nothing was refitted.
        folds: into how many folds the labels are divided; 1 where they are not.
    """

    trial: Trial
    judged: tuple[Trial, ...]
    refits: tuple[Trial, ...]
    tests: tuple[TestScore, ...]
    folds: int = 1

    @cached_property
    def units(self) -> Units:
        """Empty where scores are no means over units."""
        return units_of(self.judged)

    @property
    def val(self) -> float:
        """Mean over all that was judged; over the trainings where scores are no means; the search's own where none finished."""
        if self.units:
            return float(np.concatenate(list(self.units.values())).mean())
        values = [t.value for t in self.judged if t.value is not None]
        return float(np.mean(values)) if values else self.trial.value or 0.0

    def after(self, rounds: Sequence[tuple[int, int]]) -> Finalist:
        """The finalist as it stood after these (repeat, fold) alone."""
        return replace(self, judged=tuple(t for t in self.judged if (t.spec.repeat, t.spec.fold) in rounds))

    @property
    def exported(self) -> Trial | None:
        """The training to export and test first: every seed is as good as another, so the first."""
        return next(iter(self.refits or self.judged), None)

    @property
    def tested(self) -> tuple[Trial, ...]:
        """The trainings that the test set is asked about: folds that judged one and the same model count once."""
        models: dict[tuple[str, int], Trial] = {}
        for trial in self.refits or self.judged:
            models.setdefault((trial.spec.parent or trial.spec.key, trial.spec.repeat), trial)
        return tuple(models.values())

    @property
    def tested_as(self) -> str:
        """Which of its models the test was asked of; blank where none was."""
        if not self.tests:
            return ""
        return "refit" if self.refits else "folds" if self.folds > 1 else "trainings"

    def test_values(self) -> list[float]:
        return [score.value for score in self.tests]


def units_of(judged: Iterable[Trial]) -> Units:
    """What the trainings' last scores are means of, by fold."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for trial in judged:
        rung = trial.rungs[-1] if trial.rungs else None
        if rung is None or rung.units is None:
            return {}
        found.setdefault(trial.spec.fold, []).append(rung.units.astype(np.float64))
    if any(len({len(units) for units in several}) > 1 for several in found.values()):
        return {}
    return {fold: np.mean(several, axis=0) for fold, several in found.items()}


def finalists(history: History) -> list[Finalist]:
    """The finalists, best first: by how many folds have judged them, then by validation (ties: the earlier trial); but the
    baseline, where there is one, is passed by those alone that are clearly better.
    """
    if history.finals is None:
        return []
    by_number: dict[int, list[Trial]] = {number: [] for number in history.finals.trials}
    finals = history.finals
    for trial in history.trials.values():
        # A study that was given more trials may divide its labels otherwise than before.
        of_these = trial.spec.purpose != "fold" or (trial.spec.folds == finals.folds and trial.spec.fold < finals.rounds)
        if trial.spec.trial in by_number and trial.status == "finished" and of_these:
            by_number[trial.spec.trial].append(trial)
    found = []
    for jobs in by_number.values():
        origin = next(t for t in jobs if t.spec.purpose == "search")
        judged = tuple(t for t in jobs if t.spec.purpose == "fold")
        refits = tuple(t for t in jobs if t.spec.purpose == "refit")
        keys = {t.spec.key for t in refits or judged}
        tests = tuple(s for s in history.tests if s.key in keys)
        found.append(Finalist(origin, judged, refits, tests, finals.folds))
    # A finalist that was dropped on the way, clearly behind, or that failed, never passes one that was judged to the end.
    own = next((f for f in found if f.trial.spec.trial == finals.baseline), None)
    passes = {f.trial.spec.trial for f in found if own is None or f is own or clearly_better(f, own)}
    return sorted(found, key=lambda f: (-len(f.judged), f.trial.spec.trial not in passes, -f.val, f.trial.spec.trial))


def clearly_better(a: Finalist, baseline: Finalist) -> bool:
    """Whether a's validation score lies more than one standard error above the baseline's, over what both were asked.

    The one-standard-error rule of Breiman et al. (1984, Classification and Regression Trees, section 3.4.3), with a known
    baseline in the place of the smallest tree. The best of several noisy scores is too high, and what is unusual profits most.
    """
    both = [fold for fold in a.units.keys() & baseline.units.keys() if a.units[fold].shape == baseline.units[fold].shape]
    if both:
        return bool(leads(np.concatenate([a.units[fold] - baseline.units[fold] for fold in both])))
    gap = compare(a, baseline, ONE_SD)
    # One score each tells no error: then the score decides.
    return gap.low > 0 if math.isfinite(gap.low) else gap.mean > 0


def leads(each: NDArray[np.float64], weight: NDArray[Any] | None = None) -> NDArray[np.bool_]:
    """Whether a mean of paired differences, over the last axis, is more than one standard error above nought.

    One win more for either side, as Bonett & Price (2012) have it: where few labels tell two apart, all for the same side, the
    plain standard error is far too small.

    Args:
        each: float64 [..., n], -1 to 1.
        weight: [n], how often each of the n counts; None for once.
    """
    counts, n = np.ones(each.shape[-1]) if weight is None else weight, each.shape[-1] + 2
    mean, square = each @ counts / n, (each**2 @ counts + 2) / n
    return np.asarray(mean > np.sqrt((square - mean**2) / n))


def compare(a: Finalist, b: Finalist, level: float = 0.95) -> Difference:
    """How far a's validation score lies above b's, with an interval: paired over what the same folds asked both.

    Folds share training labels, so their outcomes are dependent: the variance is that of Nadeau & Bengio (2003), (1/J + 1 /
    (K - 1)) times an average fold's, for J of K folds. Where scores are no means over units, from the trainings' spread alone.
    """
    both = sorted(set(a.units) & set(b.units))
    both = [fold for fold in both if a.units[fold].shape == b.units[fold].shape]
    if both:
        each = np.concatenate([a.units[fold] - b.units[fold] for fold in both])
        yes_or_no = all(_yes_or_no(f.judged) for f in (a, b))
        return overlapping(difference_of(each, yes_or_no, level), len(both), a.folds)
    values = [{(t.spec.repeat, t.spec.fold): t.value for t in f.judged if t.value is not None} for f in (a, b)]
    common = sorted(values[0].keys() & values[1].keys())
    if not common:
        return Difference(a.val - b.val, -math.inf, math.inf, 0)
    each = np.array([values[0][turn] - values[1][turn] for turn in common])
    return overlapping(difference_of(each, False, level), len({fold for _, fold in common}), a.folds)


def overlapping(difference: Difference, asked: int, folds: int) -> Difference:
    """The interval of images that ``asked`` of ``folds`` overlapping folds judged, from that of independent ones."""
    if folds < 2:
        return difference
    wider = math.sqrt(1 + asked / (folds - 1))
    low, high = (difference.mean + (limit - difference.mean) * wider for limit in (difference.low, difference.high))
    return Difference(difference.mean, low, high, difference.n)


def _yes_or_no(judged: Sequence[Trial]) -> bool:
    rungs: list[Rung] = [t.rungs[-1] for t in judged]
    once = len({t.spec.fold for t in judged}) == len(judged)
    return once and all(r.units is not None and r.units.dtype == bool for r in rungs)
