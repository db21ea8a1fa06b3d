"""How good will it be? The winner's test score, predicted before the test is opened.

The out-of-fold score is corrected twice. For the best of several: how much higher the best of resampled images scores on them
than on those left out (Tsamardinos et al. 2018, doi 10.1007/s10994-018-5714-4). For the labels that the final fit gains: the
error falls as labels^-c (Hestness et al. 2017, arXiv:1712.00409), c from the winner's learning curve and a prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from methods.batch import seed_of
from orchestrator.engine.events import Predicted
from orchestrator.engine.finalists import Finalist, finalists, leads, units_of
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial

LEVEL = 0.9
"""Of the interval."""

RESAMPLES = 500

EXPONENT, EXPONENT_SD = 0.4, 0.25
"""Of the learning curve, where nothing is measured: from .25 (CIFAR-10, 250 to 1,000 labels) to .7 (digits)."""

TRAINING_SD = 0.03
"""Spread of a training's score over seeds and draws of labels, in units of an answer's own sd, sqrt(p (1 - p))."""


@dataclass(frozen=True)
class LearningCurve:
    """The winner's score over label counts, and what follows from it.

    Attributes:
        labels, score: of what was measured, ascending; the last is the out-of-fold score.
        exponent, exponent_sd: c of error ~ labels^-c, and how well it is known.
    """

    labels: tuple[float, ...]
    score: tuple[float, ...]
    exponent: float
    exponent_sd: float

    def gain(self, few: float, many: float) -> tuple[float, float]:
        """What more labels bring, and its sd by the exponent alone: both ends move with it."""
        ratios = [self.labels[-1] / labels for labels in (few, many)]
        errors = [(1 - self.score[-1]) * ratio**self.exponent for ratio in ratios]
        slopes = [error * math.log(ratio) for error, ratio in zip(errors, ratios, strict=True)]
        return errors[0] - errors[1], abs(slopes[0] - slopes[1]) * self.exponent_sd

    def at(self, labels: float, score: float | None = None) -> tuple[float, float]:
        """The score at so many labels and its sd by the exponent alone; from ``score`` at the last count, or the measured."""
        error = 1 - (self.score[-1] if score is None else score)
        ratio = self.labels[-1] / labels
        then = error * ratio**self.exponent
        return 1 - then, then * abs(math.log(ratio)) * self.exponent_sd


def learning_curve(best: Finalist, history: History, labels: int) -> LearningCurve:
    """Read off the winner's trainings on a share of one fold's labels.

    Args:
        labels: of the whole budget.
    """
    sizes = [len(units) for units in best.units.values()]
    taught = labels - sum(size * size for size in sizes) / sum(sizes)
    thinner = [t for t in history.trials.values() if t.spec.purpose == "curve" and t.spec.trial == best.trial.spec.trial]
    thinner = sorted((t for t in thinner if t.status == "finished" and t.rungs), key=lambda t: t.spec.share)
    precision, weighted = EXPONENT_SD**-2, EXPONENT * EXPONENT_SD**-2
    for trial in thinner:
        fold = trial.spec.fold
        found = _exponent(units_of([trial]).get(fold), best.units.get(fold), trial.spec.share)
        if found is not None:
            # Trainings on shares of the same labels, judged by the same images, are one piece of evidence, not several.
            weight = found[1] ** -2 / len(thinner)
            precision, weighted = precision + weight, weighted + weight * found[0]
    counts = [t.spec.share * taught for t in thinner] + [taught]
    scores = [t.value or 0.0 for t in thinner] + [best.val]
    return LearningCurve(tuple(counts), tuple(scores), weighted / precision, precision**-0.5)


def _exponent(few: NDArray[np.float64] | None, many: NDArray[np.float64] | None, share: float) -> tuple[float, float] | None:
    """c and its sd from the same images, answered by models of fewer and of all labels; None where the errors do not tell."""
    if few is None or many is None or few.shape != many.shape:
        return None
    n, wrong = len(few), (1 - few.mean(), 1 - many.mean())
    # Half an error more keeps the logarithm finite.
    a, b = (max(error, 0.0) + 0.5 / n for error in wrong)
    spread = few / a - many / b
    sd = math.sqrt(spread.var(ddof=1) / n + TRAINING_SD**2 * (1 / a + 1 / b)) / -math.log(share)
    return math.log(a / b) / -math.log(share), max(sd, 0.05)


def optimism(scores: Sequence[NDArray[np.float64]], seed: int, baseline: int | None = None) -> float:
    """How much the best of several, chosen on these images, owes to them.

    Args:
        scores: of each candidate, float64 [n]: what the same n images contribute.
        baseline: which of them only those pass that are clearly better; None where the best score wins.
    """
    if len(scores) < 2:
        return 0.0
    each, random = np.stack(scores), np.random.default_rng(seed)
    n, gains = each.shape[1], []
    for _ in range(RESAMPLES):
        weight = np.bincount(random.integers(0, n, n), minlength=n)
        left = weight == 0
        if left.any():
            inside = each @ weight / n
            if baseline is not None:
                inside = np.where(leads(each - each[baseline], weight), inside, -np.inf)
                inside[baseline] = each[baseline] @ weight / n
            best = int(inside.argmax())
            gains.append(inside[best] - each[best, left].mean())
    # Below nought it is the noise of resampling: having been chosen makes no score too low.
    return max(float(np.mean(gains)), 0.0) if gains else 0.0


def predict_test(
    history: History, labels: int, tests: int, seed: int, label_free: frozenset[str] = frozenset()
) -> Predicted | None:
    """The winner's test score with its interval; None where its score is no mean over folds of the labels.

    Args:
        labels: of the whole budget.
        tests: images of the test.
        seed: of the resampling.
        label_free: names of the methods whose training reads no labels.
    """
    board = finalists(history)
    if not board or board[0].folds < 2 or not board[0].units:
        return None
    best = board[0]
    owed = _owed(board, history, seed_of(seed, "optimism"))
    units = np.concatenate(list(best.units.values()))
    # n labels that were all right (or all wrong) tell that a miss (or a hit) is rarer than about one in n, not that none comes.
    rarest = 0.5 / (len(units) + 1)
    score = min(max(best.val - owed, rarest), 1 - rarest)
    curve = learning_curve(best, history, labels)
    value, gain_sd = curve.at(labels, score) if gains_labels(best, label_free) else (score, 0.0)
    # Where all was right the answers' own spread says nothing.
    answer = max(float(units.var(ddof=1)) if len(units) > 1 else 0.25, score * (1 - score))
    # Labels that judged, the final training's own luck, images of the test, and the labels' gain.
    variance = answer / len(units) + TRAINING_SD**2 * answer + answer / max(tests, 1) + gain_sd**2
    # On the scale of the logit, so that no limit leaves 0..1.
    half = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(math.log(value / (1 - value)) + side * half))) for side in (-1, 1))
    return Predicted(
        value, low, high, LEVEL, {"out_of_fold": best.val, "best_of_several": score - best.val, "labels": value - score}
    )


def gains_labels(best: Finalist, label_free: frozenset[str]) -> bool:
    """Whether the final fit has more labels than a fold's: a winner whose training reads none has its probe fitted on all of
    them, others only where they are refitted.
    """
    return bool(best.refits) or best.trial.spec.method in label_free


def _owed(board: Sequence[Finalist], history: History, seed: int) -> float:
    """What the winner's score owes to having been the best: of the search on the images that chose there, of the finalists on
    the others.
    """
    best, finals = board[0], history.finals
    rivals = [f for f in board if f.units.keys() == best.units.keys()]
    numbers = [f.trial.spec.trial for f in rivals]
    own = numbers.index(finals.baseline) if finals is not None and finals.baseline in numbers else None
    among = optimism([np.concatenate([f.units[k] for k in sorted(f.units)]) for f in rivals], seed, own)
    if finals is None or not finals.nested or 0 not in best.units:
        return among
    # The baseline did not win by its score, but its configuration is the best of its method's.
    spec = best.trial.spec
    trials = [t for t in history.search() if spec.trial != finals.baseline or t.spec.method == spec.method]
    searched = [units for t in trials if (units := _at_the_top(t)) is not None]
    searched = [units for units in searched if len(units) == len(best.units[0])]
    share = len(best.units[0]) / sum(map(len, best.units.values()))
    return share * max(optimism(searched, seed), among) + (1 - share) * among


def _at_the_top(trial: Trial) -> NDArray[np.float64] | None:
    """What a finished trial's last score is a mean of."""
    units = trial.rungs[-1].units if trial.status == "finished" and trial.rungs else None
    return None if units is None else units.astype(np.float64)
