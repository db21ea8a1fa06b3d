"""No early stopping: every trial is trained to the end in one go."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.engine.history import History
from orchestrator.strategies.asha import go_on
from orchestrator.strategies.contract import Decision, Done, Problem, Start, Strategy, Wait


@dataclass(frozen=True)
class NoStopping(Strategy):
    """Starts trials while the budget lasts."""

    def next(self, problem: Problem, history: History) -> Decision:
        for trial in history.undecided():
            # Of a search that began with another strategy.
            return go_on(problem, trial)
        if problem.may_start(history):
            return Start(problem.sampler.propose(history), problem.top)
        return Wait() if history.open() else Done()
