"""What may honestly be said of the winner: paired comparisons with intervals, and the sentences made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from methods.protocols.contract import difference_of
from methods.tasks import Facts
from orchestrator.engine.events import Scored
from orchestrator.engine.history import History
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


def paired(a: Rung, b: Rung, facts: Facts) -> Interval | None:
    """Mean difference a - b over the validation images or episodes that both answered; None where they share none."""
    if not _pairs(a, b):
        return None
    return _paired([a], [b], facts)


def _pairs(a: Rung, b: Rung) -> bool:
    return a.units is not None and b.units is not None and a.units.shape == b.units.shape and a.units.dtype == b.units.dtype


def _paired(a: Sequence[Rung], b: Sequence[Rung], facts: Facts) -> Interval:
    """Every unit's mean over the rungs, paired."""
    mean_a, mean_b = (np.mean([r.units.astype(np.float64) for r in rungs if r.units is not None], axis=0) for rungs in (a, b))
    yes_or_no = len(a) == 1 and a[0].units is not None and a[0].units.dtype == bool
    found = difference_of(mean_a - mean_b, yes_or_no)
    # A frozen encoder's probe is cross-validated on the whole budget, so it has learnt from more labels than a method that
    # was trained on one part: whoever reads the difference must know.
    unequal = ", though the frozen encoder's probe had more labels" if a[0].scored_on != b[0].scored_on else ""
    return Interval(found.mean, found.low, found.high, found.n, f"{facts.units[a[0].scored_on]}, paired{unequal}")


def compare(a: Finalist, b: Finalist, facts: Facts) -> Interval:
    """How far a's validation score lies above b's: paired per image or episode over all seeds where both answered the same,
    else from the seeds' spread alone.
    """
    per_seed = [(x.rungs[-1], y.rungs[-1]) for x, y in zip(a.retrained, b.retrained, strict=False) if x.rungs and y.rungs]
    both = [(x, y) for x, y in per_seed if _pairs(x, y)]
    if both:
        return _paired([x for x, _ in both], [y for _, y in both], facts)
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


def verdict(history: History, facts: Facts) -> Verdict:
    """The honest reading of a finished study.

    Args:
        history: of the study.
        facts: what its task says of the division: where the test came from, what validated, what the exported model saw.
    """
    board = finalists(history)
    if not board:
        return Verdict(("No trial finished, so there is no winner; the reasons stand in the leaderboard.",))
    best = board[0]
    spec = best.trial.spec
    said = [
        f"Winner: {spec.method} (trial {spec.trial}), chosen by validation: {best.val:.1%} over {len(best.retrained)} seed(s)"
        f"{facts.folds}.",
        _of_test(best, facts),
        _against_runner_up(board, facts),
        _against_defaults(history, best, facts),
        facts.refitted if best.refits else facts.exported,
        _of_the_last_tenth(history),
        facts.left_out,
        facts.luck,
    ]
    return Verdict(tuple(sentence for sentence in said if sentence))


def _of_test(best: Finalist, facts: Facts) -> str:
    tests = best.test_values()
    if not tests:
        return facts.no_test
    spread = f", sd {np.std(tests, ddof=1):.1%}" if len(tests) > 1 else ""
    first = best.tests[0]
    asked = facts.asked[best.trial.rungs[-1].scored_on] if best.trial.rungs else "images"
    return (
        f"Test: {np.mean(tests):.1%}{spread} over {len(tests)} seed(s), {first.n} {asked} ({facts.taken}); "
        f"95% interval of one model by the test set's size alone: {first.low:.1%} to {first.high:.1%}."
    )


def _against_runner_up(board: Sequence[Finalist], facts: Facts) -> str:
    if len(board) < 2:
        return ""
    gap, other = compare(board[0], board[1], facts), board[1].trial.spec
    name = f"{other.method} (trial {other.trial})"
    if gap.low > 0:
        return f"It is ahead of the runner-up, {name}: {_told(gap)}."
    if gap.high < 0:
        # A frozen encoder is ranked by all labels of the budget, and the two compared on those that both answered.
        return f"On what both answered, the runner-up, {name}, is ahead: {_told(gap)}."
    return f"It is not distinguishable from the runner-up, {name}: {_told(gap)}."


def _of_the_last_tenth(history: History) -> str:
    """What the last tenth of the search brought, where a budget other than trials ended it; blank otherwise."""
    ended = history.search_ended
    if ended is None or history.trials_wanted is not None or history.started is None:
        return ""
    # Replayed, since time that the study lay killed counts in no budget.
    replayed, scores = History(), []
    for event in history.events[: history.events.index(ended)]:
        replayed.add(event)
        if isinstance(event, Scored):
            scores.append((replayed.elapsed, event.rung.value))
    late = 0.9 * replayed.elapsed
    if not scores:
        return ""
    before = max((value for time, value in scores if time <= late), default=None)
    after = max(value for _, value in scores)
    if before is None:
        return f"The search ended because {ended.reason}; all its scores came in the last tenth of it: give it more."
    gain = f"raised the best validation score by {after - before:.1%}" if after > before else "brought nothing better"
    return f"The search ended because {ended.reason}; its last tenth {gain}."


def _told(gap: Interval) -> str:
    span = f" [{gap.low:+.1%}, {gap.high:+.1%}]" if math.isfinite(gap.low) else " (too few for an interval)"
    return f"{gap.mean:+.1%}{span} on {gap.n} {gap.what}"


def _against_defaults(history: History, best: Finalist, facts: Facts) -> str:
    """The winner against its own method's defaults, which are that method's first trial."""
    method = best.trial.spec.method
    default = next((t for t in history.search() if t.spec.method == method and t.spec.origin == "defaults"), None)
    if default is None:
        return "Its method's defaults were not tried."
    if default.spec.trial == best.trial.spec.trial:
        return "The winner is its method's default configuration: the search found none better."
    gap = paired(best.trial.rungs[-1], default.rungs[-1], facts) if default.status == "finished" else None
    if gap is None:
        return "Its method's defaults were not scored on the same images."
    if gap.low > 0:
        return f"Against its method's defaults: {_told(gap)}."
    if gap.high < 0:
        return f"On what both answered, its method's defaults are ahead: {_told(gap)}."
    return f"It is not distinguishable from its method's defaults: {_told(gap)}."
