"""Hyperband (Li et al. 2018, arXiv:1603.06560): brackets of successive halving that begin at different rungs, one after the
other, so that no one choice of how early trials are compared decides.

Deviations: brackets follow each other in the order in which trials start, and while one waits for its last trials the next one
starts; a method is not judged before its ``min_epochs``; each method's defaults always train to the end, and take no place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.strategies.asha import go_on
from orchestrator.strategies.contract import Decision, Done, Problem, Start, Stop, Strategy, Wait


@dataclass(frozen=True)
class Bracket:
    """Numbers of its trials, from ``begin`` to before ``end``, and the rung at which they are first compared."""

    begin: int
    end: int
    first: Fidelity


@dataclass(frozen=True)
class Hyperband(Strategy):
    """Successive halving in brackets.

    Attributes:
        reduction: one of so many goes on.
    """

    reduction: Annotated[int, Field(ge=1)] = 3

    def next(self, problem: Problem, history: History) -> Decision:
        over = not problem.may_start(history)
        waiting = history.undecided()
        for trial in waiting:
            if trial.spec.origin == "defaults":
                return go_on(problem, trial)
        for trial in waiting:
            decision = self._judge(problem, history, trial, over)
            if decision is not None:
                return decision
        if not over:
            configuration = problem.sampler.propose(history)
            bracket = self.bracket(problem, len(history.search()))
            ahead = tuple(at for at in problem.rungs_of(configuration.method) if at.amount >= bracket.first.amount)
            return Start(configuration, ahead[0], ahead[1:])
        return Wait() if history.open() else Done()

    def _judge(self, problem: Problem, history: History, trial: Trial, over: bool) -> Decision | None:
        """Whether a trial that waits goes on, once all of its bracket that come to its rung are there."""
        at, bracket = problem.stands_at(trial), self.bracket(problem, trial.spec.trial)
        scores = history.scores_at(at)
        if trial.spec.key not in scores:
            return Stop(trial.spec.key, f"its score at {at} is no finite number")
        members = history.search()[bracket.begin : bracket.end]
        if len(members) < bracket.end - bracket.begin and not over:
            return None
        if any(t.status == "running" and self._comes_to(problem, t, at) and t.spec.key not in scores for t in members):
            return None
        there = [t for t in members if t.spec.key in scores and t.spec.origin != "defaults"]
        own = history.place_at(at, trial.spec.key)
        stay = max(1, len(there) // self.reduction)
        if sum(history.place_at(at, t.spec.key) < own for t in there) < stay:
            return go_on(problem, trial)
        return Stop(trial.spec.key, f"not among the best {stay} of its bracket's {len(there)} at {at}")

    @staticmethod
    def _comes_to(problem: Problem, trial: Trial, at: Fidelity) -> bool:
        """Whether a trial that has not ended may still be scored at a rung."""
        return trial.spec.origin != "defaults" and at in problem.rungs_of(trial.spec.method) and at in problem.after(trial)

    def bracket(self, problem: Problem, number: int) -> Bracket:
        """The bracket of the trial of this number: in turn those that begin at the first rung, the second, up to the top."""
        levels = len(problem.rungs)
        sizes = [-(-levels * self.reduction ** (levels - 1 - place) // (levels - place)) for place in range(levels)]
        begin = number - number % sum(sizes)
        for first, size in zip(problem.rungs, sizes, strict=True):
            if number < begin + size:
                return Bracket(begin, begin + size, first)
            begin += size
        raise AssertionError(number)
