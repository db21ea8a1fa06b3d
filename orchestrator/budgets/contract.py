"""What may be spent: a budget counts one thing in the history, and the ledger says when the first of them runs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial


@dataclass(frozen=True)
class Resources:
    """What a study computes with at a time.

    Attributes:
        slots: trials at a time.
        cpus, gpus: of one trial, all its workers together.
    """

    slots: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Budget(ABC):
    """One budget. Concrete budgets are final and hold their amount.

    Attributes:
        name: as in study files.
        stops_running: whether trials under way end too when it is spent; else they train on to where they are judged.
        timed: whether it counts time, so that what a training costs is only known once it was measured.
        amount: how much may be spent.
    """

    name: ClassVar[str]
    stops_running: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    amount: float

    @abstractmethod
    def spent(self, history: History, resources: Resources) -> float:
        """How much of it has been spent: a fixed function of the history."""

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        """What ``share`` of one more training like this ended trial would spend, its slots working in parallel."""
        return 0.0

    def closing(self, history: History) -> float:
        """What the end of the study will spend beside trainings: tests and report."""
        return 0.0

    def testing(self, scorings: float) -> Budget:
        """This budget, told how many scorings of a search trial the tests cost; itself where that is nothing to it."""
        return self

    def check(self, resources: Resources, top: Fidelity) -> None:
        """Raises UserError where nothing here can be counted, before anything is trained."""
        return

    def __str__(self) -> str:
        word = self.name.replace("_", " ")
        return f"{self.amount:g} {word if self.amount != 1 else word.removesuffix('s')}"


Trainings = Callable[[History], Sequence[tuple[Trial, float]]]
"""The trainings that would still come after the search if it ended now: trials like them, and how many of each."""


def no_trainings(history: History) -> Sequence[tuple[Trial, float]]:
    """Nothing comes after the search."""
    return ()


@dataclass(frozen=True)
class Ledger:
    """A study's budgets together.

    Attributes:
        budgets: the first that runs out ends the search.
        resources: what trains at a time.
        afterwards: the trainings of selection and refit, for which the search keeps enough of every budget.
    """

    budgets: tuple[Budget, ...]
    resources: Resources = Resources()
    afterwards: Trainings = no_trainings

    def spent_out(self, history: History, to_come: Sequence[tuple[Trial, float]] = ()) -> Budget | None:
        """The first budget that the search has used up, the selection's share kept; None while all hold."""
        return self._exceeded(self.budgets, history, to_come)

    def may_start(self, history: History, to_come: Sequence[tuple[Trial, float]] = ()) -> bool:
        """Whether another trial may start, with what is ``to_come`` in any case: trainings like these, how many of each."""
        return self.spent_out(history, to_come) is None

    def must_stop(self, history: History) -> Budget | None:
        """The budget because of which trials under way end now, or None."""
        return self._exceeded([budget for budget in self.budgets if budget.stops_running], history)

    def allows(self, history: History, trainings: Sequence[tuple[Trial, float]]) -> bool:
        """Whether these trainings still fit after the search, the closing included."""
        return all(self._left(b, history) >= self._cost(b, trainings) for b in self.budgets if b.stops_running)

    def bears_test(self, history: History) -> bool:
        """Whether the end of the study, the test of another model included, still fits where a budget counts it."""
        return all(self._left(b, history) >= 0 for b in self.budgets if b.closing(history))

    def _exceeded(
        self, budgets: Sequence[Budget], history: History, to_come: Sequence[tuple[Trial, float]] = ()
    ) -> Budget | None:
        """The first of these that leaves too little for what comes after the search; for trials and labels that is nothing."""
        keeps = any(budget.stops_running for budget in budgets)
        kept = [*self.afterwards(history), *to_come] if keeps else []
        for budget in budgets:
            if self._left(budget, history) <= (self._cost(budget, kept) if budget.stops_running else 0.0):
                return budget
        return None

    def _left(self, budget: Budget, history: History) -> float:
        return budget.amount - budget.spent(history, self.resources) - budget.closing(history)

    def _cost(self, budget: Budget, trainings: Sequence[tuple[Trial, float]]) -> float:
        return sum(budget.cost(trial, share, self.resources) for trial, share in trainings)
