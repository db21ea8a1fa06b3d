"""What comes next in a search, one strategy a file. ``STRATEGIES`` lists them by the name that study files use."""

from orchestrator.strategies.asha_stopping import AshaStopping
from orchestrator.strategies.contract import (
    Continue,
    Decision,
    Done,
    Fork,
    Problem,
    Start,
    Stop,
    Strategy,
    Wait,
)

__all__ = ["STRATEGIES", "AshaStopping", "Continue", "Decision", "Done", "Fork", "Problem", "Start", "Stop", "Strategy", "Wait"]

STRATEGIES: dict[str, type[AshaStopping]] = {"asha_stopping": AshaStopping}
