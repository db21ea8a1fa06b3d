"""A study's course on simulated time, without training: for estimates, and for people who try strategies of their own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from methods.training.clock import Fidelity
from orchestrator.engine.controller import Controller, Course
from orchestrator.engine.events import FORMAT, Event, Opened, Started
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Configuration, Report, Rung

Pretend = Callable[[Configuration, Fidelity, int], tuple[float, float]]
"""(configuration, fidelity, seed) -> (score, seconds that training from nothing to there takes). A fixed function."""

BEGIN = 1_000_000_000.0
"""Seconds since 1970 at which a simulated study begins."""


@dataclass
class _Slots:
    """Slots on simulated time: each report comes when its segment would have been trained."""

    score: Pretend
    controller: Controller
    free: int

    def __post_init__(self) -> None:
        self.clock = BEGIN
        self._ends: list[tuple[float, int, Assignment, Fidelity]] = []
        self._count = 0

    def play(self) -> None:
        """Runs until nothing is left to train."""
        while True:
            while self.free and (given := self.controller.next_assignment()) is not None:
                self.free -= 1
                self._begin(given, given.segment.to)
            if not self._ends:
                return
            self.clock, _, given, to = heapq.heappop(self._ends)
            if self.controller.receive(self._report(given, to)):
                self._begin(given, next(f for f in given.segment.onward if f.amount > to.amount))
            else:
                self.free += 1

    def _pretend(self, given: Assignment, at: Fidelity) -> tuple[float, float]:
        spec = given.spec
        return self.score(Configuration(spec.method, spec.values, spec.origin, spec.encoder), at, spec.seed)

    def _begin(self, given: Assignment, to: Fidelity) -> None:
        trial = self.controller.history.trials[given.spec.key]
        before = trial.done or Fidelity(to.unit, trial.inherited)
        seconds = self._seconds(given, to) - self._seconds(given, before)
        self._count += 1
        heapq.heappush(self._ends, (self.clock + seconds, self._count, given, to))

    def _seconds(self, given: Assignment, at: Fidelity) -> float:
        return self._pretend(given, at)[1] if at.amount else 0.0

    def _report(self, given: Assignment, to: Fidelity) -> Report:
        value, seconds = self._pretend(given, to)
        inherited = self.controller.history.trials[given.spec.key].inherited
        refit = given.spec.purpose == "refit"
        rung = None if refit else Rung(to.amount, value, 1, value, value, "validation", None, 0.0)
        return Report(
            key=given.spec.key,
            epoch=to.amount,
            stage="",
            parts={},
            train_seconds=seconds - self._seconds(given, Fidelity(to.unit, inherited)),
            images=0,
            status="reached",
            done=to,
            rung=rung,
            checkpoint=f"trials/{given.spec.key}/checkpoint-{to.amount:g}.pt",
        )


def play(course: Course, score: Pretend, slots: int, trials: int | None) -> list[Event]:
    """The events of a course whose trials only pretend to train.

    Args:
        course: what decides.
        score: what training gives, and how long it takes.
        slots: trials at a time.
        trials: as the first event tells them.
    """
    history = History([Started(FORMAT, trials, {}, time=BEGIN), Opened(BEGIN, time=BEGIN)])
    held: list[_Slots] = []
    controller = Controller(
        course, history, slots + 1, write=lambda *events: None, forget=lambda key: None,
        clock=lambda: held[0].clock if held else BEGIN,
    )  # fmt: skip
    held.append(_Slots(score, controller, slots))
    held[0].play()
    return history.events
