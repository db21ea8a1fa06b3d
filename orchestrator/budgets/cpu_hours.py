"""A budget of CPU hours: the seconds that trials trained and were scored, times the CPUs they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial


@dataclass(frozen=True)
class CpuHours(Budget):
    """So many CPU hours are spent, search and selection together."""

    name: ClassVar[str] = "cpu_hours"
    timed: ClassVar[bool] = True
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        return history.busy_seconds() * resources.cpus / 3600

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return share * trial.busy_again * resources.cpus / 3600
