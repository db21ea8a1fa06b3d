"""A budget of minutes on the clock, from the command to its end, without the time that a study lay killed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial

TURNAROUND = 0.05
"""Seconds that a training costs beside its own work in a warm slot, checkpoint included."""

REPORTING = 20.0
"""Seconds for the report, its pictures and the exported model, at the least."""

EACH = 0.06
"""Seconds a trial more of the report and of Optuna's database: 800 probes took 50 s to write."""

TESTING = 3.0
"""Scorings of a search trial that the tests of finalists cost at the least: a few times the images, once a model."""

TESTS = 0.2
"""Of the minutes, what is kept for tests that are larger than what validates, at the most: the rest is for the search."""


@dataclass(frozen=True)
class Minutes(Budget):
    """The study ends, selection, test and report included, when so many minutes have passed.

    Attributes:
        scorings: of a search trial that the tests cost.
    """

    name: ClassVar[str] = "minutes"
    timed: ClassVar[bool] = True
    amount: float
    scorings: float = TESTING

    def testing(self, scorings: float) -> Minutes:
        return replace(self, scorings=max(TESTING, scorings))

    def spent(self, history: History, resources: Resources) -> float:
        return history.elapsed / 60

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return share * (trial.busy_again + TURNAROUND) / resources.slots / 60

    def closing(self, history: History) -> float:
        tests = min(
            self.scorings * history.longest_scoring(), max(TESTS * 60 * self.amount, TESTING * history.longest_scoring())
        )
        return (REPORTING + EACH * len(history.search()) + tests) / 60
