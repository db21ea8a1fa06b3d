"""A budget of GPU hours: the seconds that trials trained and were scored, times the GPUs they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.training.clock import Fidelity
from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from search_spaces.domains import UserError


@dataclass(frozen=True)
class GpuHours(Budget):
    """So many GPU hours are spent, search and selection together."""

    name: ClassVar[str] = "gpu_hours"
    timed: ClassVar[bool] = True
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        return history.busy_seconds() * resources.gpus / 3600

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return share * trial.busy_again * resources.gpus / 3600

    def check(self, resources: Resources, top: Fidelity) -> None:
        if not resources.gpus:
            raise UserError(f"budget.gpu_hours needs GPUs, and trials have none here, got {self.amount:g}; use cpu_hours")
