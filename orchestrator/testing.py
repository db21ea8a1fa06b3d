"""For people who write their own strategies, budgets and tasks: a study's course without training, and what each owes.

``simulate`` runs a study's strategy against a function that pretends to train; the ``check_`` functions raise AssertionError
with a sentence where a contract is broken, and belong into one's own tests.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from methods.tasks.testing import check_task
from methods.training.clock import Fidelity
from orchestrator.budgets.contract import Budget, Resources
from orchestrator.engine.controller import Controller
from orchestrator.engine.events import FORMAT, Event, Opened, Started, decode, encode
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Configuration, Report, Rung
from orchestrator.prepare import course_of
from orchestrator.strategies.contract import Strategy
from orchestrator.study import Study

__all__ = ["Pretend", "check_budget", "check_strategy", "check_task", "simulate"]

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
        return self.score(Configuration(spec.method, spec.values, spec.origin), at, spec.seed)

    def _begin(self, given: Assignment, to: Fidelity) -> None:
        done = self.controller.history.trials[given.spec.key].done
        before = 0.0 if done is None else self._pretend(given, done)[1]
        self._count += 1
        heapq.heappush(self._ends, (self.clock + self._pretend(given, to)[1] - before, self._count, given, to))

    def _report(self, given: Assignment, to: Fidelity) -> Report:
        value, seconds = self._pretend(given, to)
        refit = given.spec.purpose == "refit"
        rung = None if refit else Rung(to.amount, value, 1, value, value, "validation", None, 0.0)
        return Report(
            key=given.spec.key,
            epoch=to.amount,
            stage="",
            parts={},
            train_seconds=seconds,
            images=0,
            status="reached",
            done=to,
            rung=rung,
            checkpoint=f"trials/{given.spec.key}/checkpoint-{to.amount:g}.pt",
        )


def simulate(study: Study, score: Pretend, slots: int = 1) -> list[Event]:
    """The events of a study whose trials only pretend to train, selection included (its refits are those of labels).

    Args:
        study: its data is not loaded; knobs that depend on the number of images are searched without that limit.
        score: what training gives, and how long it takes.
        slots: trials at a time.
    """
    refits = frozenset(name for name, method in study.catalogue().items() if method.uses_labels and study.selection.refit)
    course = course_of(study, study.space(), refits, Resources(slots), study.trials)
    history = History()
    for event in (Started(FORMAT, study.trials, {}, time=BEGIN), Opened(BEGIN, time=BEGIN)):
        history.add(event)
    held: list[_Slots] = []
    controller = Controller(
        course, history, slots + 1, write=lambda *events: None, forget=lambda key: None,
        clock=lambda: held[0].clock if held else BEGIN,
    )  # fmt: skip
    held.append(_Slots(score, controller, slots))
    held[0].play()
    return history.events


def check_strategy(strategy: Strategy, study: Study, score: Pretend, slots: int = 2) -> History:
    """Holds a strategy to its contract, on a simulated study.

    The same study twice gives the same course; a history that was read back from its journal leads to the same decision as the
    one that grew; every trial ends; and no more trials start than the budget allows.

    Returns:
        The study's history.
    """
    study = study.model_copy(update={"strategy": strategy})
    events = simulate(study, score, slots)
    assert events == simulate(study, score, slots), "the same study twice must take the same course"
    history = History(events)
    left = [trial.spec.key for trial in history.trials.values() if trial.status == "running"]
    assert not left, f"every trial must end, but {left[0]} does not"
    if study.trials is not None:
        assert len(history.search()) <= study.trials, f"{len(history.search())} trials started, {study.trials} were asked for"
    assert history.selected is not None, "the search must come to its end"
    for cut in range(2, len(events), max(1, len(events) // 20)):
        grown, read = History(), History([decode(encode(event).encode()) for event in events[:cut]])
        for event in events[:cut]:
            grown.add(event)
        refits: frozenset[str] = frozenset()
        decisions = []
        for past in (grown, read):
            course = course_of(study, study.space(), refits, Resources(slots), study.trials)
            decisions.append(None if past.search_ended else strategy.next(course.problem, past))
        assert decisions[0] == decisions[1], f"after {cut} events the strategy decides otherwise from the journal"
    return history


def check_budget(budget: Budget, study: Study, score: Pretend) -> History:
    """Holds a budget to its contract, on a simulated study that has no other.

    What is spent never falls, is a fixed function of the history, and ends the search.
    """
    study = study.model_copy(update={"budget": (budget,), "trials": None})
    events = simulate(study, score)
    history, resources, before = History(), Resources(), 0.0
    for event in events:
        history.add(event)
        spent = budget.spent(history, resources)
        assert spent >= before, f"what is spent must not fall, but {before} became {spent} with a {event.event} event"
        before = spent
    assert budget.spent(History(events), resources) == before, "a budget must be a fixed function of the history"
    assert history.search_ended is not None, "the search must end when the budget is spent"
    assert str(budget) in history.search_ended.reason, f"the search must end by this budget, got {history.search_ended.reason}"
    return history
