"""Shared by the orchestrator's tests: tiny methods, journals kept in memory's speed, and slots that only pretend to train."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.connect import Connection
from cluster.machine import Node
from cluster.storage import LocalStorage, Storage
from methods.batch import seed_of
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.allocation import Joint
from orchestrator.budgets import Ledger, Resources, Trials
from orchestrator.engine.controller import Controller, Course
from orchestrator.engine.events import FORMAT, Event, Opened, Started
from orchestrator.engine.health import HealthLimits
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal, read_journal
from orchestrator.engine.records import Assignment, Report, Rung, SlotSetup, TrialSpec
from orchestrator.engine.selection import Division, Finals
from orchestrator.engine.trial import SegmentRun
from orchestrator.strategies import AshaStopping, Problem, Strategy
from orchestrator.study import Selection
from search_spaces.domains import Choice, Float, Int, When, knob
from search_spaces.space import Space


@dataclass(frozen=True)
class One:
    heat: float = knob(0.5, Float(0.1, 1.0, log=True))
    momentum: float = knob(0.9, Float(0.5, 0.99, log1m=True))
    kind: str = knob("a", Choice(("a", "b")))
    depth: int = knob(2, Int(1, 4), when=When("kind", "b"))


@dataclass(frozen=True)
class Two:
    ratio: float = knob(0.75, Float(0.25, 0.9))
    batch: int = knob(128, Int(32, 256, power_of_two=True))


class Killed(BaseException):
    """The driver was killed."""


class DyingJournal(Journal):
    """A journal whose process is killed at a given write."""

    def __init__(self, storage: Storage, writes: int) -> None:
        super().__init__(storage)
        self.writes = writes

    def write(self, *events: Event) -> None:
        if self.writes == 0:
            raise Killed
        self.writes -= 1
        super().write(*events)


class PretendSlot:
    """What ``SegmentRun`` tells, without training: scores are a fixed function of study, configuration, seed, epoch."""

    def __init__(self, folder: Path, failing: float, study: int) -> None:
        self.folder, self.failing, self.study = folder, failing, study
        self.spec: TrialSpec | None = None

    def begin(self, given: Assignment) -> None:
        start = given.segment.start
        self.spec, self.stops = given.spec, [given.segment.to, *given.segment.onward]
        self.epoch = int((self.folder / start).read_text()) if start else 0

    def draw(self, *parts: object) -> float:
        assert self.spec is not None
        which = filter(None, (self.spec.method, self.spec.encoder))
        return seed_of(self.study, *which, sorted(self.spec.values.items()), *parts) / 2**63

    def advance(self) -> Report:
        spec = self.spec
        assert spec is not None
        # From the search's own end there is nothing left to train: the trial is judged.
        trained = self.epoch < self.stops[0].amount
        assert trained or spec.parent is not None, "nothing left to train"
        self.epoch += trained
        if trained and self.epoch == 2 and self.draw("fails") < self.failing:
            return Report(spec.key, 1, "", {}, 1.0, 0, "failed", Fidelity("epochs", 1), "diverged")
        reached = self.epoch == self.stops[0].amount
        rung = checkpoint = None
        if reached:
            self.stops = self.stops[1:] or self.stops
            value = 0.8 * self.draw("good") + 0.1 * self.draw(spec.seed, self.epoch, spec.fold) + 0.01 * self.epoch
            correct = np.random.default_rng(seed_of(spec.key, self.epoch)).random(21) < value
            if spec.purpose != "refit":
                rung = Rung(self.epoch, value, 21, value - 0.1, value + 0.1, "validation", correct, 0.5)
            checkpoint = f"{spec.key}-{self.epoch}.pt"
            (self.folder / checkpoint).write_text(str(self.epoch))
        parts, seconds = {"loss": self.draw(self.epoch)}, trained * float(self.epoch) * (1 + self.draw("slow"))
        return Report(
            key=spec.key,
            epoch=self.epoch,
            stage="train",
            parts=parts,
            train_seconds=seconds,
            images=32,
            status="reached" if reached else "running",
            done=Fidelity("epochs", self.epoch),
            rung=rung,
            checkpoint=checkpoint,
        )


@dataclass
class Pretence:
    """A study of ``One`` and ``Two`` in pretended slots. ``play`` may be called again on the same folder: it resumes."""

    folder: Path
    trials: int = 7
    epochs: tuple[int, ...] = (1, 3)
    strategy: Strategy = field(default_factory=lambda: AshaStopping(2))
    selection: Selection = field(default_factory=lambda: Selection(top=2, folds=2, seeds=2))
    division: Division = field(default_factory=lambda: Division((2, 4), frozenset({2})))
    refits: frozenset[str] = frozenset({"two"})
    label_free: frozenset[str] = frozenset({"one"})
    slots: int = 1
    seed: int = 0
    startup: int = 3
    failing: float = 0.2
    health: HealthLimits = field(default_factory=lambda: HealthLimits({}, {}))
    slot: type[Any] = PretendSlot
    sinks: tuple[Any, ...] = ()
    encoders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    written: int = 0

    @property
    def storage(self) -> LocalStorage:
        return LocalStorage(self.folder)

    def history(self) -> History:
        return History(read_journal(self.storage))

    def course(self, trials: int | None) -> Course:
        space = Space({"one": One, "two": Two}, encoders=self.encoders)
        budgets = () if trials is None else (Trials(trials),)
        finals = Finals(self.selection, self.division, self.refits, self.label_free, self.seed)
        ledger = Ledger(budgets, Resources(self.slots), finals.trainings_after)
        sampler = Joint(space, self.seed, self.startup)
        rungs = tuple(Fidelity("epochs", epoch) for epoch in self.epochs)
        problem = Problem(self.seed, space.methods, rungs, {}, sampler, ledger)
        return Course(problem, self.strategy, finals, ledger, self.health)

    def controller(self, journal: Journal) -> Controller:
        history = History(read_journal(self.storage) if self.storage.list("journal/") else ())
        started = [] if history.started else [Started(FORMAT, self.trials, {"labelwise": "0"})]
        opened = [Opened(0.0)] if started or history.open() else []
        for event in (*started, *opened):
            journal.write(event)
            history.add(event)
        forget = self.storage.delete
        return Controller(self.course(history.trials_wanted), history, self.slots + 1, journal.write, forget, self.sinks)

    def play(self, kill_at: int | None = None, order: Callable[[int], int] = lambda n: 0, lose: str = "") -> History:
        """Runs to the end, or until write number ``kill_at``. ``order`` picks which of n busy slots reports next."""
        journal = DyingJournal(self.storage, -1 if kill_at is None else kill_at)
        try:
            controller = self.controller(journal)
            idle = [self.slot(self.folder, self.failing, self.seed) for _ in range(self.slots)]
            busy: list[Any] = []
            while not controller.over:
                while idle and (given := controller.next_assignment()) is not None:
                    busy.append(idle.pop())
                    busy[-1].begin(given)
                slot = busy[order(len(busy)) % len(busy)]
                assert slot.spec is not None
                if slot.spec.key == lose:
                    controller.lost(lose)
                    goes_on = False
                else:
                    goes_on = controller.receive(slot.advance())
                if not goes_on:
                    busy.remove(slot)
                    idle.append(slot)
            assert controller.next_assignment() is None
            return controller.history
        finally:
            self.written = (-1 if kill_at is None else kill_at) - journal.writes
            journal.close()


@pytest.fixture
def pretence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretence]:
    """pretence(**settings): a study in a fresh folder whose slots only pretend to train."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    count = iter(range(10**6))

    def make(**settings: Any) -> Pretence:
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        return Pretence(folder, **settings)

    return make


@pytest.fixture
def configs() -> dict[str, type]:
    """Two methods' knobs: a conditional one, and both transformed scales."""
    return {"one": One, "two": Two}


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


def _in_this_process(controller: Controller, shared: SlotSetup, plan: object) -> None:
    slot = SegmentRun(shared, World())
    while (given := controller.next_assignment()) is not None:
        slot.begin(given)
        while controller.receive(slot.advance()):
            pass


@pytest.fixture(scope="module")
def without_ray() -> Iterator[None]:
    """Studies of the module train in this process."""
    connection = Connection("local", "found", (Node(1.0, 0.0, 2**30),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["orchestrator.run"], "connect", lambda address: connection)
        patch.setattr(sys.modules["orchestrator.run"], "run_slots", _in_this_process)
        yield
