"""Which method gets the next trial: what an allocation owes, and what it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.allocation.standings import Standing, compared


@dataclass(frozen=True)
class Field:
    """The methods of a search as they stand.

    Attributes:
        seed: of the study.
        methods: names of those that may be given a trial, in the study's order: something is left to try
            of each.
        standings: by method, of all methods of the study in its order.
        trials: that the search is to start, where a budget counts them.
    """

    seed: int
    methods: tuple[str, ...]
    standings: Mapping[str, Standing]
    trials: int | None

    def compared(self, methods: Iterable[str]) -> dict[str, float]:
        """The best score of each of these methods at the highest rung that all of them have reached; without those that have
        no score at all.
        """
        return compared({name: self.standings[name] for name in methods})

    def behind(self, methods: Iterable[str]) -> str:
        """Of these methods the one with the fewest trials, the first in the study's order of equals."""
        return min(methods, key=lambda name: self.standings[name].started)


class Allocation(ABC):
    """Which method gets the next trial. Concrete allocations are final and hold settings only.

    Every method's defaults come before anything is allocated, and ``supervised`` is given its due by whoever asks; see
    ``TwoLevels``.
    """

    @abstractmethod
    def next(self, field: Field) -> str:
        """One of ``field.methods``: a fixed function of ``field``."""

    @abstractmethod
    def why(self, field: Field) -> str:
        """Why the methods have got the trials that they have, for people: a clause that ends a sentence."""
