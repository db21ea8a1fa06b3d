"""Shared by the orchestrator's tests: tiny methods, journals kept in memory's speed, and slots that only pretend to train."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.batch import seed_of
from orchestrator.engine.controller import Controller
from orchestrator.engine.journal import FORMAT, Event, History, Journal, Started
from orchestrator.engine.records import Report, Rung, TrialSpec
from orchestrator.strategies.asha_stopping import AshaStopping
from orchestrator.strategies.sampler import Search
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

    def __init__(self, path: Path, writes: int) -> None:
        super().__init__(path)
        self.writes = writes

    def write(self, event: Event) -> None:
        if self.writes == 0:
            raise Killed
        self.writes -= 1
        super().write(event)


class PretendSlot:
    """What ``TrialRun`` tells, without training: scores are a fixed function of study, configuration, seed, epoch."""

    def __init__(self, folder: Path, rungs: tuple[int, ...], failing: float, study: int) -> None:
        self.folder, self.rungs, self.failing, self.study = folder, rungs, failing, study
        self.spec: TrialSpec | None = None

    def begin(self, job: TrialSpec) -> None:
        self.spec = job
        self.epoch = int(Path(job.checkpoint).read_text()) if job.checkpoint else 0
        self.owed = job.checkpoint is not None

    def draw(self, *parts: object) -> float:
        assert self.spec is not None
        return seed_of(self.study, self.spec.method, sorted(self.spec.values.items()), *parts) / 2**63

    def advance(self) -> Report:
        job = self.spec
        assert job is not None
        assert self.owed or self.epoch < self.rungs[-1], "nothing left to train"
        self.epoch, self.owed = self.epoch + (not self.owed), False
        if self.epoch == 2 and self.draw("fails") < self.failing:
            return Report(job.key, 1, "", {}, 1.0, 0, "failed", "diverged")
        last = self.epoch == self.rungs[-1]
        rung = checkpoint = None
        if self.epoch in self.rungs:
            value = 0.8 * self.draw("good") + 0.1 * self.draw(job.seed, self.epoch) + 0.01 * self.epoch
            correct = np.random.default_rng(seed_of(job.key, self.epoch)).random(21) < value
            if job.purpose != "refit":
                rung = Rung(self.epoch, value, 21, value - 0.1, value + 0.1, "validation", correct, 0.5)
            path = self.folder / f"{job.key}.pt"
            path.write_text(str(self.epoch))
            checkpoint = str(path)
        parts, seconds = {"loss": self.draw(self.epoch)}, float(self.epoch) * (1 + self.draw("slow"))
        return Report(job.key, self.epoch, "train", parts, seconds, 32, "finished" if last else "running", "", rung, checkpoint)


@dataclass
class Pretence:
    """A study of ``One`` and ``Two`` in pretended slots. ``play`` may be called again on the same folder: it resumes."""

    folder: Path
    trials: int = 7
    epochs: tuple[int, ...] = (1, 3)
    reduction: int = 2
    selection: Selection = field(default_factory=lambda: Selection(top=2, seeds=2))
    refits: frozenset[str] = frozenset({"two"})
    slots: int = 1
    seed: int = 0
    startup: int = 3
    failing: float = 0.2

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def sweep(self, journal: Journal) -> Controller:
        history = History.read(self.journal)
        if history.started is None:
            started = Started(FORMAT, self.trials, {"labelwise": "0"})
            journal.write(started)
            history.add(started)
        return Controller(
            search=Search(Space({"one": One, "two": Two}), self.seed, self.startup),
            rungs=AshaStopping(self.epochs, self.reduction),
            selection=self.selection,
            refits=self.refits,
            journal=journal,
            history=history,
            ahead=self.slots + 1,
            seed=self.seed,
        )

    def play(self, kill_at: int | None = None, order: Callable[[int], int] = lambda n: 0, lose: str = "") -> History:
        """Runs to the end, or until write number ``kill_at``. ``order`` picks which of n busy slots reports next."""
        journal = DyingJournal(self.journal, -1 if kill_at is None else kill_at)  # creates the file
        try:
            sweep = self.sweep(journal)
            idle = [PretendSlot(self.folder, self.epochs, self.failing, self.seed) for _ in range(self.slots)]
            busy: list[PretendSlot] = []
            while not sweep.over:
                while idle and (job := sweep.next_job()) is not None:
                    busy.append(idle.pop())
                    busy[-1].begin(job)
                slot = busy[order(len(busy)) % len(busy)]
                assert slot.spec is not None
                if slot.spec.key == lose:
                    sweep.lost(lose)
                    ended = True
                else:
                    ended = sweep.receive(slot.advance())
                if ended:
                    busy.remove(slot)
                    idle.append(slot)
            assert sweep.next_job() is None
            return sweep.history
        finally:
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
