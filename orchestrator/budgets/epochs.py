"""A budget of epochs, trained in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial


@dataclass(frozen=True)
class Epochs(Budget):
    """So many epochs are trained, search and selection together."""

    name: ClassVar[str] = "epochs"
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        return history.epochs_trained()

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return trial.epochs * share
