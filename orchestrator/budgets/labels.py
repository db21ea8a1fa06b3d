"""A budget of labels: how many a study buys, beyond those that are known at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.training.clock import Fidelity
from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.history import History
from search_spaces.domains import UserError


@dataclass(frozen=True)
class Labels(Budget):
    """So many labels are bought, by the trial that has come furthest: trials of a study share what was bought."""

    name: ClassVar[str] = "labels"
    stops_running: ClassVar[bool] = False
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        bought = (t.done.amount for t in history.trials.values() if t.done is not None and t.done.unit == "labels")
        return max(bought, default=0.0)

    def check(self, resources: Resources, top: Fidelity) -> None:
        if top.unit != "labels":
            raise UserError(f"budget.labels is for tasks that buy labels, got {self.amount:g}; leave it out")
