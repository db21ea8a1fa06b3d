"""What the report says of an ensemble: what it would gain where it is off, and what each step gained where it is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from methods.protocols.confidence import Reliability, Scaling
from orchestrator.engine.events import StepName
from orchestrator.engine.finalists import Finalist, finalists
from orchestrator.engine.history import History

STEPS: Mapping[StepName, str] = {
    "folds": "with the models of its folds",
    "finalists": "with the other finalists",
    "distilled": "all as one model",
}

AVERAGED = "What averaging it with the models of its folds would bring, no out-of-fold answer tells."


def of_ensemble(history: History, taken: str) -> str:
    """The ensemble, out of fold and where it is exported on the test; blank where none can be made.

    Args:
        taken: where the test comes from.
    """
    found = history.ensembled
    if found is None:
        return ""
    titles = {f.trial.spec.trial: f.trial.spec.title for f in finalists(history)}
    others = found.members[1:]
    models = sum(member.models for member in found.members)
    shares = " and ".join(f"{titles[m.trial]} (trial {m.trial}, {m.weight:.0%})" for m in others)
    gain = span(found.gain, found.low, found.high)
    out_of_fold = f"{found.together:.1%} out of fold against {found.alone:.1%}, {gain} on {found.n} images, paired"
    if found.exported:
        first = next(iter(history.steps), None)
        told = [f"{STEPS[s.name]} {s.score.value:.1%} ({span(s.gain, s.low, s.high)})" for s in history.steps]
        several = f", {shares} beside the winner: {out_of_fold}" if others else " of the winner's alone"
        what = "one model distilled from" if history.distilled is not None else "an ensemble of"
        exported = f"Exported is {what} {models} models{several}."
        if first is None:
            return exported
        return f"{exported} On the test ({taken}) the winner alone has {first.score.value - first.gain:.1%}; {', '.join(told)}."
    off = f"Off by default (selection.ensemble), since a prediction would ask {models} models in place of one."
    if others:
        return f"Averaged with {shares} the winner would score {out_of_fold}. {off}"
    return f"No other finalist improves the winner's out-of-fold answers.{f' {AVERAGED} {off}' if models > 1 else ''}"


def span(mean: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]"


def reliability_of(board: Sequence[Finalist], history: History) -> Reliability | None:
    """What the exported model's confidences are worth on the test; None where nothing calibrates them or no test was made."""
    if history.steps:
        return history.steps[-1].score.reliability
    return board[0].tests[0].reliability if board and board[0].tests else None


def scaling_of(history: History, several: bool) -> Scaling | None:
    """What calibrates the exported model.

    Args:
        several: whether the ensemble is exported, or what was distilled of it.
    """
    found = history.ensembled if several else history.calibrated
    if found is None or (several and history.distilled is not None):
        return None
    return found.scaling
