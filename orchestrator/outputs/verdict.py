"""What may honestly be said of the winner: paired comparisons with intervals, and the sentences made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from methods.data.records import Split
from methods.protocols.contract import difference_of
from orchestrator.engine.journal import History
from orchestrator.engine.records import Rung
from orchestrator.outputs.leaderboard import Finalist, finalists


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95% interval. ``n`` units, ``what`` they are."""

    mean: float
    low: float
    high: float
    n: int
    what: str


def paired(a: Rung, b: Rung) -> Interval | None:
    """Mean difference a - b over the validation images or episodes that both answered; None where they share none."""
    if not _pairs(a, b):
        return None
    return _paired([a], [b])


def _pairs(a: Rung, b: Rung) -> bool:
    return a.units is not None and b.units is not None and a.units.shape == b.units.shape and a.units.dtype == b.units.dtype


def _paired(a: Sequence[Rung], b: Sequence[Rung]) -> Interval:
    """Every unit's mean over the rungs, paired."""
    mean_a, mean_b = (np.mean([r.units.astype(np.float64) for r in rungs if r.units is not None], axis=0) for rungs in (a, b))
    yes_or_no = len(a) == 1 and a[0].units is not None and a[0].units.dtype == bool
    found = difference_of(mean_a - mean_b, yes_or_no)
    images = "images of another data set" if a[0].scored_on == "elsewhere" else "validation images"
    what = "episodes" if a[0].scored_on in ("episodes", "turns") else images
    # A frozen encoder's probe is cross-validated on the whole budget, so it has learnt from more labels than a method that
    # was trained on one part: whoever reads the difference must know.
    unequal = ", though the frozen encoder's probe had more labels" if a[0].scored_on != b[0].scored_on else ""
    return Interval(found.mean, found.low, found.high, found.n, f"{what}, paired{unequal}")


def compare(a: Finalist, b: Finalist) -> Interval:
    """How far a's validation score lies above b's: paired per image or episode over all seeds where both answered the same,
    else from the seeds' spread alone.
    """
    per_seed = [(x.rungs[-1], y.rungs[-1]) for x, y in zip(a.retrained, b.retrained, strict=False) if x.rungs and y.rungs]
    both = [(x, y) for x, y in per_seed if _pairs(x, y)]
    if both:
        return _paired([x for x, _ in both], [y for _, y in both])
    values_a = [t.value for t in a.retrained if t.value is not None]
    values_b = [t.value for t in b.retrained if t.value is not None]
    if len(values_a) < 2 or len(values_b) < 2:
        return Interval(a.val - b.val, -math.inf, math.inf, min(len(values_a), len(values_b)), "seeds")
    result = stats.ttest_ind(values_a, values_b, equal_var=False).confidence_interval(0.95)
    return Interval(a.val - b.val, float(result.low), float(result.high), min(len(values_a), len(values_b)), "seeds")


@dataclass(frozen=True)
class Verdict:
    """What may be said of the winner, one sentence each."""

    sentences: tuple[str, ...]


def verdict(history: History, split: Split) -> Verdict:
    """The honest reading of a finished study.

    Args:
        split: how its data was divided: where the test came from, if there was one, and whether groups validated in turn.
    """
    board = finalists(history)
    if not board:
        return Verdict(("No trial finished, so there is no winner; the reasons stand in the leaderboard.",))
    best = board[0]
    spec = best.trial.spec
    turns = f", each the mean over {len(split.turns)} groups left out in turn" if split.turns else ""
    said = [
        f"Winner: {spec.method} (trial {spec.trial}), chosen by validation: {best.val:.1%} over {len(best.retrained)} seed(s)"
        f"{turns}."
    ]
    tests = best.test_values()
    if tests:
        spread = f", sd {np.std(tests, ddof=1):.1%}" if len(tests) > 1 else ""
        first = best.tests[0]
        asked = "episodes" if best.trial.rungs and best.trial.rungs[-1].scored_on in ("episodes", "turns") else "images"
        taken = "held out from your data" if split.holdout else "your test set"
        said.append(
            f"Test: {np.mean(tests):.1%}{spread} over {len(tests)} seed(s), {first.n} {asked} ({taken}); "
            f"95% interval of one model by the test set's size alone: {first.low:.1%} to {first.high:.1%}."
        )
    elif split.test is None:
        said.append(
            "No test was made (test: none). The validation score chose the winner, so for new classes it is optimistic."
        )
    if len(board) > 1:
        gap = compare(best, board[1])
        other = board[1].trial.spec
        name = f"{other.method} (trial {other.trial})"
        if gap.low > 0:
            said.append(f"It is ahead of the runner-up, {name}: {_told(gap)}.")
        elif gap.high < 0:
            # A frozen encoder is ranked by all labels of the budget, and the two compared on those that both answered.
            said.append(f"On what both answered, the runner-up, {name}, is ahead: {_told(gap)}.")
        else:
            said.append(f"It is not distinguishable from the runner-up, {name}: {_told(gap)}.")
    said.append(_against_defaults(history, best))
    if best.refits:
        what = "all groups" if split.turns else "the whole label budget, validation labels included"
        said.append(f"The exported model was trained on {what}.")
    elif split.new_classes:
        said.append("The exported encoder was trained without the classes that validated.")
    else:
        said.append("The exported encoder was trained without validation labels; a probe on it may use the whole budget.")
    if split.left_out:
        which = f"first {split.left_out[0]}"
        said.append(f"{len(split.left_out)} class(es) have too few images for the episodes and were not asked, {which}.")
    drawn = ["which images were labelled"]
    if split.new_classes:
        drawn = ["which classes validated"] * (not split.turns) + ["which classes were held out"] * split.holdout
    if drawn:
        said.append(f"The spread over seeds does not include the luck of {' and '.join(drawn)}.")
    return Verdict(tuple(said))


def _told(gap: Interval) -> str:
    span = f" [{gap.low:+.1%}, {gap.high:+.1%}]" if math.isfinite(gap.low) else " (too few for an interval)"
    return f"{gap.mean:+.1%}{span} on {gap.n} {gap.what}"


def _against_defaults(history: History, best: Finalist) -> str:
    """The winner against its own method's defaults, which are that method's first trial."""
    default = next(t for t in history.search() if t.spec.method == best.trial.spec.method)
    if default.spec.trial == best.trial.spec.trial:
        return "The winner is its method's default configuration: the search found none better."
    gap = paired(best.trial.rungs[-1], default.rungs[-1]) if default.status == "finished" else None
    if gap is None:
        return "Its method's defaults were not scored on the same images."
    if gap.low > 0:
        return f"Against its method's defaults: {_told(gap)}."
    if gap.high < 0:
        return f"On what both answered, its method's defaults are ahead: {_told(gap)}."
    return f"It is not distinguishable from its method's defaults: {_told(gap)}."
