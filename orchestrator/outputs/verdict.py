"""What may honestly be said of the winner: paired comparisons with intervals, and the sentences made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from methods.protocols.confidence import Reliability
from methods.protocols.contract import Difference, difference_of
from methods.tasks import Facts
from orchestrator.care.records import Care
from orchestrator.care.sentences import sentences
from orchestrator.engine.events import Scored
from orchestrator.engine.finalists import Finalist, compare, finalists
from orchestrator.engine.history import History
from orchestrator.engine.prediction import learning_curve
from orchestrator.outputs.ensemble import of_ensemble, reliability_of

WORTH = 0.01
"""A gain that is worth more labels or more time."""

NAMED = 0.8
"""Share of the images whose accuracy is told where the others are left to a person."""


@dataclass(frozen=True)
class Verdict:
    """What may be said of the winner, one sentence each."""

    sentences: tuple[str, ...]


def verdict(history: History, facts: Facts, care: Care | None = None) -> Verdict:
    """The honest reading of a finished study.

    Args:
        history: of the study.
        facts: what its task says of the division: where the test came from, what validated, what the exported model saw.
        care: what was found in its data, where that was looked for.
    """
    board = finalists(history)
    if not board:
        return Verdict(("No trial finished, so there is no winner; the reasons stand in the leaderboard.",))
    best = board[0]
    spec = best.trial.spec
    said = [
        f"Winner: {spec.title} (trial {spec.trial}), chosen by validation: {best.val:.1%} over {judges(best)}{facts.folds}.",
        _predicted(history),
        _of_test(best, facts),
        _untested(board),
        *(() if care is None else sentences(care)),
        of_ensemble(history, facts.taken),
        _of_confidence(board, history),
        _against_baseline(board, history, facts) or _against_runner_up(board, facts),
        _against_defaults(history, best, facts),
        _by_encoder(history),
        _cheapest(board),
        facts.refitted if best.refits else facts.exported,
        what_next(history, facts.labels) if facts.labels else "",
        _of_the_last_tenth(history),
        facts.left_out,
        facts.luck,
    ]
    return Verdict(tuple(sentence for sentence in said if sentence))


def judges(best: Finalist) -> str:
    """What judged, in a phrase."""
    seeds = len({t.spec.repeat for t in best.judged})
    folds = len({t.spec.fold for t in best.judged})
    asked = sum(map(len, best.units.values()))
    over = f"{folds} of {best.folds} folds ({asked} labels)" if best.folds > 1 else ""
    return " and ".join(part for part in (over, f"{seeds} seed(s)" if seeds > 1 or not over else "") if part)


def _predicted(history: History) -> str:
    said = history.predicted
    if said is None:
        return ""
    # Rounded to what is printed, so that nothing is -0.0%.
    owed, gained = (round(said.parts[part], 3) + 0.0 for part in ("best_of_several", "labels"))
    return (
        f"Predicted before the test was opened: {said.value:.1%} ({said.level:.0%} interval {said.low:.1%} to {said.high:.1%}):"
        f" {said.parts['out_of_fold']:.1%} out of fold, {owed:+.1%} for the best of several,"
        f" {gained:+.1%} for the labels gained."
    )


def what_next(history: History, labels: int) -> str:
    """Label more, train longer, or stop: whichever brings more, where it brings a point."""
    best = finalists(history)[0]
    if best.folds < 2 or not best.units:
        return ""
    curve = learning_curve(best, history, labels)
    more, sd = curve.gain(labels, 2 * labels)
    rungs = best.trial.rungs
    longer = rungs[-1].value - rungs[-2].value if len(rungs) > 1 else 0.0
    text = f"{2 * labels} labels in place of {labels} would bring about {more:+.1%} (90% interval {more - 1.645 * sd:+.1%} to"
    text += f" {more + 1.645 * sd:+.1%})"
    if len(rungs) > 1:
        text += f"; the last {rungs[-1].epoch - rungs[-2].epoch:g} epochs of its training brought {longer:+.1%}"
    advice = "label more" if more >= max(longer, WORTH) else "train longer" if longer >= WORTH else "stop here"
    return f"{text}: {advice}."


def _cheapest(board: Sequence[Finalist]) -> str:
    """The fastest finalist that is not distinguishable from the winner, where it is another one."""
    best = board[0]
    near = [f for f in board if f.tests and f.tests[0].ms > 0 and (f is best or not compare(best, f).low > 0)]
    if not best.tests or len(near) < 2:
        return ""
    cheapest = min(near, key=lambda f: f.tests[0].ms)
    if cheapest.tests[0].ms > 0.8 * best.tests[0].ms:
        return ""
    score, spec = cheapest.tests[0], cheapest.trial.spec
    return (
        f"The cheapest that is not distinguishable from it is {spec.title} (trial {spec.trial}): {score.parameters:,}"
        f" parameters and {score.ms:.3g} ms an image, against {best.tests[0].parameters:,} and {best.tests[0].ms:.3g}."
    )


def _of_test(best: Finalist, facts: Facts) -> str:
    tests = best.test_values()
    if not tests:
        return facts.no_test
    spread = f", sd {np.std(tests, ddof=1):.1%}" if len(tests) > 1 else ""
    first = best.tests[0]
    models = "seed(s)" if best.refits or best.folds < 2 or len(tests) < 2 else "models of its folds"
    asked = facts.asked[best.trial.rungs[-1].scored_on] if best.trial.rungs else "images"
    return (
        f"Test: {np.mean(tests):.1%}{spread} over {len(tests)} {models}, {first.n} {asked} ({facts.taken}); "
        f"95% interval of one model by the test set's size alone: {first.low:.1%} to {first.high:.1%}."
    )


def _untested(board: Sequence[Finalist]) -> str:
    """Whom the study's time did not let it test."""
    left = [f.trial.spec for f in board if not f.tests and any(t.checkpoint is not None for t in f.tested)]
    if not board[0].tests or not left:
        return ""
    return f"Not tested within the study's time: {', '.join(f'{spec.title} (trial {spec.trial})' for spec in left)}."


def abstaining(sure: Reliability) -> str:
    """What leaving the doubtful to a person brings."""
    return (
        f"Of the {NAMED:.0%} of the test images that it is surest of {sure.at(NAMED):.1%} are right, of all {sure.at(1):.1%}."
    )


def _of_confidence(board: Sequence[Finalist], history: History) -> str:
    sure = reliability_of(board, history)
    if sure is None:
        return ""
    return (
        f"{abstaining(sure)} Its confidences are calibrated: error {sure.after:.1%} on the test, {sure.before:.1%} before,"
        f" {sure.perfect_after:.1%} if they were perfect."
    )


def _against_baseline(board: Sequence[Finalist], history: History, facts: Facts) -> str:
    """How the choice came about where a score alone would have chosen otherwise."""
    best, finals = board[0], history.finals
    level = [f for f in board if len(f.judged) == len(best.judged)]
    highest = max(level, key=lambda f: f.val)
    if finals is None or best.trial.spec.trial != finals.baseline or highest.val <= best.val:
        return ""
    spec = highest.trial.spec
    return (
        f"{spec.title} (trial {spec.trial}) scored higher, but by no more than one standard error:"
        f" {told(compare(highest, best), pairing(highest, facts))}. So small a lead is too often luck, and the"
        f" baseline {best.trial.spec.method} wins (selection.baseline)."
    )


def _against_runner_up(board: Sequence[Finalist], facts: Facts) -> str:
    if len(board) < 2:
        return ""
    gap, other = compare(board[0], board[1]), board[1].trial.spec
    name = f"{other.title} (trial {other.trial})"
    if gap.low > 0:
        return f"It is ahead of the runner-up, {name}: {told(gap, pairing(board[0], facts))}."
    if gap.high < 0:
        # A finalist that a lack of budget kept from later folds ranks below those that all folds judged.
        return f"On what both answered, the runner-up, {name}, is ahead: {told(gap, pairing(board[0], facts))}."
    return f"It is not distinguishable from the runner-up, {name}: {told(gap, pairing(board[0], facts))}."


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


def pairing(finalist: Finalist, facts: Facts) -> str:
    """What pairs a finalist with others, in a word or two."""
    if not finalist.units:
        return "seeds"
    return f"{facts.units[finalist.judged[0].rungs[-1].scored_on]}, paired"


def told(gap: Difference, what: str) -> str:
    span = f" [{gap.low:+.1%}, {gap.high:+.1%}]" if math.isfinite(gap.low) else " (too few for an interval)"
    return f"{gap.mean:+.1%}{span} on {gap.n} {what}"


def _against_defaults(history: History, best: Finalist, facts: Facts) -> str:
    """The winner against its own method's defaults, with its own encoder where they were tried with it, else the first."""
    spec = best.trial.spec
    tried = [t for t in history.search() if t.spec.method == spec.method and t.spec.origin == "defaults"]
    if not tried:
        return "Its method's defaults were not tried."
    default = next((t for t in tried if t.spec.encoder == spec.encoder), tried[0])
    other_encoder = f" (with {default.spec.encoder})" if default.spec.encoder != spec.encoder else ""
    if default.spec.trial == best.trial.spec.trial:
        return "The winner is its method's default configuration: the search found none better."
    own, other = best.trial.rungs[-1], default.rungs[-1] if default.status == "finished" else None
    if other is None or own.units is None or other.units is None or own.units.shape != other.units.shape:
        return f"Its method's defaults{other_encoder} were not scored on the same images."
    gap = difference_of(own.units.astype(np.float64) - other.units, own.units.dtype == other.units.dtype == bool)
    said = told(gap, f"{facts.units[own.scored_on]}, paired")
    if gap.low > 0:
        return f"Against its method's defaults{other_encoder}: {said}."
    if gap.high < 0:
        return f"On what both answered, its method's defaults{other_encoder} are ahead: {said}."
    return f"It is not distinguishable from its method's defaults{other_encoder}: {said}."


def _by_encoder(history: History) -> str:
    """The search's best score with each encoder; blank where the study has one."""
    labels = dict.fromkeys(t.spec.encoder for t in history.search() if t.spec.encoder)
    said = []
    for label in labels:
        trials = [t for t in history.search() if t.spec.encoder == label]
        values = [t.value for t in trials if t.status == "finished" and t.value is not None]
        best = f"{max(values):.1%}" if values else "none finished"
        said.append(f"{label}: {best} ({len(trials)} trial{'s' if len(trials) > 1 else ''})")
    return f"The search's best validation score by encoder: {'; '.join(said)}." if len(said) > 1 else ""
