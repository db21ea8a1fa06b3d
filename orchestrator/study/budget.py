"""The fields of what a study may spend."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from orchestrator.study.fields import Strict, StudyError


class BudgetFields(Strict):
    """What the search may spend.

    Attributes:
        trials: configurations that the search tries; retraining comes on top.
    """

    trials: int = Field(16, ge=1)

    def check_budget(self, methods: Sequence[str]) -> None:
        """Raises StudyError where the budget does not reach for every method once."""
        if self.trials < len(methods):
            raise StudyError(
                f"trials must be at least the number of methods, {len(methods)}, so that each is tried once, got {self.trials}"
            )
