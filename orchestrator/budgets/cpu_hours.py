"""A budget of CPU hours: the seconds that trials trained and were scored, times the CPUs they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial


def busy(trial: Trial) -> float:
    """Seconds in which the trial kept its slot busy."""
    return trial.seconds + sum(rung.seconds for rung in trial.rungs)


def again(trial: Trial) -> float:
    """Seconds in which another such training, from nothing, would keep a slot busy."""
    return trial.seconds_from_nothing + sum(rung.seconds for rung in trial.rungs)


@dataclass(frozen=True)
class CpuHours(Budget):
    """So many CPU hours are spent, search and selection together."""

    name: ClassVar[str] = "cpu_hours"
    timed: ClassVar[bool] = True
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        return sum(busy(trial) for trial in history.trials.values()) * resources.cpus / 3600

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return share * again(trial) * resources.cpus / 3600
