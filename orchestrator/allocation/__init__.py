"""Which method gets the next trial, one allocation a file. ``ALLOCATIONS`` lists them by the name that study files use."""

from orchestrator.allocation.contract import Allocation, Field
from orchestrator.allocation.halving import Halving
from orchestrator.allocation.joint import Joint, JointTpe
from orchestrator.allocation.max_ucb import MaxUcb
from orchestrator.allocation.round_robin import RoundRobin
from orchestrator.allocation.standings import Standing, Standings, standings_of
from orchestrator.allocation.two_levels import TwoLevels

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Field",
    "Halving",
    "Joint",
    "JointTpe",
    "MaxUcb",
    "RoundRobin",
    "Standing",
    "Standings",
    "TwoLevels",
    "standings_of",
]

ALLOCATIONS: dict[str, type[RoundRobin | Halving | MaxUcb | JointTpe]] = {
    "round_robin": RoundRobin,
    "halving": Halving,
    "max_ucb": MaxUcb,
    "tpe": JointTpe,
}
