"""Asynchronous successive halving by stopping (Li et al. 2020, arXiv:1810.05934): at every rung the best 1/reduction go on.

Three rules beside the paper's. A method is not judged before its ``min_epochs``, so rungs compare equals. Each method's
first trial, its defaults, always trains to the end, so that every method is seen once at full length. A score that is not
finite never enters a rung.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.strategies.contract import Continue, Decision, Done, Problem, Stop, Strategy, Wait


@dataclass(frozen=True)
class AshaStopping(Strategy):
    """Stops a trial at a rung below the cutoff of the scores there so far.

    Attributes:
        reduction: one of so many goes on.
    """

    reduction: Annotated[int, Field(ge=1)] = 3

    def next(self, problem: Problem, history: History) -> Decision:
        for trial in history.undecided():
            return self._judge(problem, history, trial)
        if problem.may_start(history):
            return problem.start(history)
        return Wait() if history.open() else Done()

    def _judge(self, problem: Problem, history: History, trial: Trial) -> Decision:
        ahead, at = problem.after(trial), problem.stands_at(trial)
        scores = history.scores_at(at)
        if trial.spec.origin != "defaults" and trial.spec.key in scores:
            cutoff = float(np.quantile(list(scores.values()), 1 - 1 / self.reduction))
            if scores[trial.spec.key] < cutoff:
                where = f"epoch {at.amount:g}" if at.unit == "epochs" else str(at)
                return Stop(trial.spec.key, f"below the best 1/{self.reduction} of {len(scores)} at {where}")
        return Continue(trial.spec.key, ahead[0], ahead[1:])
