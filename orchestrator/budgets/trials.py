"""A budget of trials: how many configurations the search starts. Retrainings come on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History


@dataclass(frozen=True)
class Trials(Budget):
    """So many configurations are started; those under way are trained on."""

    name: ClassVar[str] = "trials"
    stops_running: ClassVar[bool] = False
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        return len(history.search())
