"""One epoch, then the best few (Egele et al. 2023, arXiv:2307.15422): every trial trains to the first rung, and the ``top``
best of them to the end. A baseline that is often as good as what is cleverer.

Deviations: the first rung is the first at which all methods may be judged, so that equals are compared; each method's defaults
always train to the end, and beside the ``top``; methods on frozen features have no rung and are trained at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.strategies.asha import go_on
from orchestrator.strategies.contract import Continue, Decision, Done, Problem, Start, Stop, Strategy, Wait


@dataclass(frozen=True)
class OneEpochThenTopK(Strategy):
    """Trains all a little, then the best to the end.

    Attributes:
        top: trials that train to the end.
    """

    top: Annotated[int, Field(ge=1)] = 5

    def next(self, problem: Problem, history: History) -> Decision:
        first = self._first(problem)
        waiting = []
        for trial in history.undecided():
            if trial.spec.origin == "defaults" or (trial.done and trial.done.amount < first.amount):
                return go_on(problem, trial)
            if trial.spec.key not in history.scores_at(first):
                return Stop(trial.spec.key, f"its score at {first} is no finite number")
            waiting.append(trial)
        waiting.sort(key=lambda trial: history.place_at(first, trial.spec.key))
        if len(waiting) > self.top:
            return Stop(waiting[-1].spec.key, f"not among the best {self.top} at {first}")
        if not self._closing(history, first) and problem.may_start(history, _rest(waiting, problem)):
            configuration = problem.sampler.propose(history)
            ahead = problem.rungs_of(configuration.method)
            to = max(ahead[0], first, key=lambda at: at.amount)
            return Start(configuration, to, tuple(at for at in ahead if at.amount > to.amount))
        if any(segment.to.amount <= first.amount for t in history.open() if (segment := t.segment) is not None):
            return Wait()
        if waiting:
            # The best first: a budget may end before the last is done.
            return Continue(waiting[0].spec.key, problem.top)
        return Wait() if history.open() else Done()

    @staticmethod
    def _first(problem: Problem) -> Fidelity:
        firsts = [problem.rungs_of(name)[0] for name in problem.methods if name not in problem.in_one_go]
        return max(firsts, key=lambda at: at.amount, default=problem.top)

    @staticmethod
    def _closing(history: History, first: Fidelity) -> bool:
        """Whether the best have begun to train on, after which nothing new starts."""
        gone_on = (t for t in history.open() if t.spec.origin != "defaults" and t.done is not None)
        return any(t.done is not None and t.done.amount >= first.amount for t in gone_on)


def _rest(waiting: list[Trial], problem: Problem) -> list[tuple[Trial, float]]:
    """What training these to the end would cost: so many times what they have cost so far."""
    return [(t, problem.top.amount / t.done.amount - 1) for t in waiting if t.done is not None and t.done.amount > 0]
