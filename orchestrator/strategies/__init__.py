"""Who goes on in a search, one strategy a file. ``STRATEGIES`` lists them by the name that study files use."""

from orchestrator.strategies.asha import Asha
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
from orchestrator.strategies.hyperband import Hyperband
from orchestrator.strategies.none import NoStopping
from orchestrator.strategies.one_epoch_then_top_k import OneEpochThenTopK

__all__ = [
    "STRATEGIES",
    "Asha",
    "AshaStopping",
    "Continue",
    "Decision",
    "Done",
    "Fork",
    "Hyperband",
    "NoStopping",
    "OneEpochThenTopK",
    "Problem",
    "Start",
    "Stop",
    "Strategy",
    "Wait",
]

STRATEGIES: dict[str, type[Asha | AshaStopping | Hyperband | OneEpochThenTopK | NoStopping]] = {
    "asha": Asha,
    "asha_stopping": AshaStopping,
    "hyperband": Hyperband,
    "one_epoch_then_top_k": OneEpochThenTopK,
    "none": NoStopping,
}
