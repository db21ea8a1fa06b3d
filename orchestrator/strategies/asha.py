"""Asynchronous successive halving by promotion (Li et al. 2020, arXiv:1810.05934): a trial that pauses at a rung goes on once
it is among the best 1/reduction of all that have come there; while none is, another trial starts.

Three rules beside the paper's. A method is not judged before its ``min_epochs``, so rungs compare equals. Each method's
first trial, its defaults, always trains to the end, so that every method is seen once at full length. And of the trials that
wait at a rung only the best ``WAITING`` are kept, since each holds a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.strategies.contract import Continue, Decision, Done, Problem, Stop, Strategy, Wait

WAITING = 32
"""Trials that wait at a rung, at the most. One that 32 better ones wait before would need 96 worse ones to come after it."""


@dataclass(frozen=True)
class Asha(Strategy):
    """Lets a trial go on when it is among the best at its rung.

    Attributes:
        reduction: one of so many goes on.
    """

    reduction: Annotated[int, Field(ge=1)] = 3

    def next(self, problem: Problem, history: History) -> Decision:
        waiting: dict[Fidelity, list[Trial]] = {}
        for trial in history.undecided():
            if trial.spec.origin == "defaults":
                return go_on(problem, trial)
            at = problem.stands_at(trial)
            if trial.spec.key not in history.scores_at(at):
                return Stop(trial.spec.key, f"its score at {at} is no finite number")
            waiting.setdefault(at, []).append(trial)
        for at in sorted(waiting, key=lambda rung: -rung.amount):
            places = {trial.spec.key: history.place_at(at, trial.spec.key) for trial in waiting[at]}
            best = min(waiting[at], key=lambda trial: places[trial.spec.key])
            if places[best.spec.key] < len(history.scores_at(at)) // self.reduction:
                return go_on(problem, best)
            if len(waiting[at]) > WAITING:
                worst = max(waiting[at], key=lambda trial: places[trial.spec.key])
                return Stop(worst.spec.key, f"{WAITING} better ones wait at {at}")
        if problem.may_start(history):
            return problem.start(history)
        return Wait() if history.open() else Done()


def go_on(problem: Problem, trial: Trial) -> Continue:
    """To the trial's next rung."""
    ahead = problem.after(trial)
    return Continue(trial.spec.key, ahead[0], ahead[1:])
