"""Which methods the search's trials went to, and why."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.allocation.contract import Field
from orchestrator.allocation.standings import standings_of
from orchestrator.choices import allocation_of
from orchestrator.engine.history import History
from orchestrator.study import Study
from orchestrator.study.extensions import left_behind


@dataclass(frozen=True)
class Shares:
    """Attributes:
    trials: by method, the most first.
    why: a clause that says what the allocation did.
    """

    trials: dict[str, int]
    why: str

    def __str__(self) -> str:
        told = ", ".join(f"{name} {count}" for name, count in self.trials.items())
        return f"Trials of each method: {told}; {self.why}."


def shares_of(study: Study, history: History) -> Shares:
    """How the trials of a search were shared among its methods."""
    names = tuple(study.method_names)
    of = standings_of(names, history).of
    counted = {name: of[name].started for name in sorted(names, key=lambda name: -of[name].started)}
    if left_behind("allocation", study.allocation):
        return Shares(counted, "shared by an allocation that was given in Python")
    return Shares(counted, allocation_of(study).why(Field(study.seed, names, of, history.trials_wanted)))
