"""What a history adds up to, kept as trials end, so that asking costs the same however many have ended."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

from orchestrator.engine.records import Trial


class ExactSum:
    """A sum of floats without rounding (Shewchuk 1997): the same in any order, so that nothing falls by being moved about."""

    def __init__(self) -> None:
        self._parts: list[float] = []

    def add(self, value: float) -> None:
        """Adds a number."""
        parts = []
        for part in self._parts:
            large, small = (value, part) if abs(value) >= abs(part) else (part, value)
            value = large + small
            if rest := small - (value - large):
                parts.append(rest)
        self._parts = [*parts, value]

    def total(self, more: Iterable[float] = ()) -> float:
        """The sum of what was added and of ``more``, rounded once."""
        return math.fsum((*self._parts, *more))


class Totals:
    """Of the trials that have ended.

    Attributes:
        epochs, busy: of all, trained by themselves; and seconds in which they kept a slot busy.
        effort: of the search's, as ``Trial.effort``.
        scoring: seconds of the longest last scoring of a trial of the search.
        ended, failed: trials of the search.
    """

    def __init__(self) -> None:
        self.epochs, self.busy, self.effort = ExactSum(), ExactSum(), ExactSum()
        self.scoring = 0.0
        self.ended = self.failed = 0
        self._ranked: list[tuple[float, int, Trial]] = []
        self._first: dict[str, tuple[float, int, Trial]] = {}

    def add(self, trial: Trial) -> None:
        """A trial that has just ended."""
        self.epochs.add(trial.own_epochs)
        self.busy.add(trial.busy)
        if trial.spec.purpose != "search":
            return
        self.effort.add(trial.effort)
        self.scoring = max(self.scoring, trial.scoring)
        self.ended += 1
        self.failed += trial.status == "failed"
        if trial.status == "finished" and trial.value is not None:
            entry = (-trial.value if not math.isnan(trial.value) else math.inf, trial.spec.trial, trial)
            bisect.insort(self._ranked, entry, key=lambda e: e[:2])
            first = self._first.setdefault(trial.spec.method, entry)
            self._first[trial.spec.method] = min(first, entry, key=lambda e: e[:2])

    def leaders(self, most: int) -> list[Trial]:
        """The ``most`` best finished trials of the search and the best of every method, best first, each once."""
        entries = {entry[1]: entry for entry in (*self._ranked[:most], *self._first.values())}
        return [entry[2] for entry in sorted(entries.values(), key=lambda e: e[:2])]
