"""Round robin: every method gets as many trials as every other."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.allocation.contract import Allocation, Field


@dataclass(frozen=True)
class RoundRobin(Allocation):
    """The method with the fewest trials is next."""

    def next(self, field: Field) -> str:
        return field.behind(field.methods)

    def why(self, field: Field) -> str:
        return "every method got as many trials as the others"
