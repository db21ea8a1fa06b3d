"""What a study may spend, one budget a file. ``BUDGETS`` lists them by the name that study files use."""

from orchestrator.budgets.contract import Budget, Ledger, Resources
from orchestrator.budgets.cpu_hours import CpuHours
from orchestrator.budgets.epochs import Epochs
from orchestrator.budgets.gpu_hours import GpuHours
from orchestrator.budgets.labels import Labels
from orchestrator.budgets.minutes import Minutes
from orchestrator.budgets.trials import Trials

__all__ = ["BUDGETS", "Budget", "CpuHours", "Epochs", "GpuHours", "Labels", "Ledger", "Minutes", "Resources", "Trials"]

BUDGETS: dict[str, type[Trials | Epochs | Minutes | CpuHours | GpuHours | Labels]] = {
    kind.name: kind for kind in (Trials, Epochs, Minutes, CpuHours, GpuHours, Labels)
}
