"""How the methods of a search stand: trials and best scores, added up event by event."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from methods.training.clock import Fidelity
from orchestrator.engine.events import Ended, Event, Scored, TrialStarted
from orchestrator.engine.history import History

BASELINE = "supervised"
"""The method whose trials are kept up with the others': a yardstick tuned less than what it measures flatters everything
(Oliver et al. 2018, arXiv:1804.09170)."""


@dataclass
class Standing:
    """One method.

    Attributes:
        started: trials.
        scored: trials that have a score.
        failed: trials whose training failed.
        best, worst: finite scores by rung.
    """

    started: int = 0
    scored: int = 0
    failed: int = 0
    best: dict[Fidelity, float] = field(default_factory=dict)
    worst: dict[Fidelity, float] = field(default_factory=dict)


def compared(standings: Mapping[str, Standing]) -> dict[str, float]:
    """The best score of each method at the highest rung that all have reached; without the methods that have no score."""
    rung = common_rung(standings.values())
    return {} if rung is None else {name: s.best[rung] for name, s in standings.items() if s.best}


def common_rung(standings: Iterable[Standing]) -> Fidelity | None:
    """The highest rung that all methods with a score have one at; None where there is none."""
    reached = [set(standing.best) for standing in standings if standing.best]
    shared = set.intersection(*reached) if reached else set()
    return max(shared, key=lambda at: at.amount, default=None)


class Standings:
    """How all methods of a search stand.

    Attributes:
        of: by method, in the study's order.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        self.of: dict[str, Standing] = {name: Standing() for name in methods}
        self._methods: dict[str, str] = {}
        self._scored: set[str] = set()
        self._overtook: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Takes the next event in."""
        match event:
            case TrialStarted() if event.spec.purpose == "search" and event.spec.method in self.of:
                self._methods[event.spec.key] = event.spec.method
                self.of[event.spec.method].started += 1
            case Scored() if event.key in self._methods and math.isfinite(event.rung.value):
                standing, at, value = self.of[self._methods[event.key]], event.at, event.rung.value
                standing.best[at] = max(value, standing.best.get(at, value))
                standing.worst[at] = min(value, standing.worst.get(at, value))
                if event.key not in self._scored:
                    self._scored.add(event.key)
                    standing.scored += 1
                self._watch()
            case Ended() if event.key in self._methods and event.status == "failed":
                self.of[self._methods[event.key]].failed += 1

    def _watch(self) -> None:
        """Notes who has overtaken the baseline, and with how many trials."""
        own = self.of.get(BASELINE)
        if own is None or not own.best:
            return
        for name, standing in self.of.items():
            if standing is own or not standing.best:
                continue
            both = compared({BASELINE: own, name: standing})
            if both and both[name] > both[BASELINE]:
                self._overtook.setdefault(name, standing.scored)
            else:
                self._overtook.pop(name, None)

    def owed(self) -> bool:
        """Whether the baseline is due a trial: it gets as many with a score as the leading method had when it overtook it."""
        if not self._overtook:
            return False
        best = compared(self.of)
        leader = max(best, key=lambda name: best[name], default=BASELINE)
        due, own = self._overtook.get(leader, 0), self.of[BASELINE]
        # One that only ever fails must not use up the search.
        return own.started - own.failed < due and own.failed <= due


def standings_of(methods: Iterable[str], history: History) -> Standings:
    """How the methods stand after a whole history."""
    found = Standings(methods)
    for event in history.events:
        found.add(event)
    return found
