"""The journal: an append-only file of what happened, one JSON line an event. Resume has this one owner.

A line is written whole before anything acts on it. A last line that a kill cut short is dropped when the journal is read;
what it told had not been acted on.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from orchestrator.engine.records import Rung, Status, TestScore, Trial, TrialSpec
from search_spaces.domains import UserError

FORMAT = 2


class JournalError(UserError):
    """A journal that cannot be read or written."""


@dataclass(frozen=True)
class Started:
    """The study began: format of the journal, versions of what computes, and the number of trials asked for."""

    event: ClassVar[str] = "started"
    format: int
    trials: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Extended:
    """The search was given more trials: their new number in all."""

    event: ClassVar[str] = "extended"
    trials: int


@dataclass(frozen=True)
class Asked:
    event: ClassVar[str] = "asked"
    spec: TrialSpec


@dataclass(frozen=True)
class Trained:
    """An epoch ended: losses and health signals, the pseudo-labels of each class, and the steps of the stage so far."""

    event: ClassVar[str] = "trained"
    key: str
    epoch: int
    seconds: float
    parts: dict[str, float]
    pseudo_labels: list[int] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Scored:
    event: ClassVar[str] = "scored"
    key: str
    rung: Rung


@dataclass(frozen=True)
class Checkpoint:
    event: ClassVar[str] = "checkpoint"
    key: str
    epoch: int
    path: str


@dataclass(frozen=True)
class Ended:
    event: ClassVar[str] = "ended"
    key: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Selected:
    """The search is over: the finalists' trial numbers, best first by the search's score."""

    event: ClassVar[str] = "selected"
    trials: list[int]


@dataclass(frozen=True)
class Chosen:
    """The winner, chosen by validation before any test label was read."""

    event: ClassVar[str] = "chosen"
    trial: int
    key: str


@dataclass(frozen=True)
class Tested:
    event: ClassVar[str] = "tested"
    score: TestScore


Event = Started | Extended | Asked | Trained | Scored | Checkpoint | Ended | Selected | Chosen | Tested
_EVENTS: dict[str, type] = {e.event: e for e in Event.__args__}


def _encode(event: Event) -> str:
    body = {"event": event.event, **asdict(event)}
    if isinstance(event, Scored) and event.rung.units is not None:
        body["rung"]["units"] = _encode_units(event.rung.units)
    return json.dumps(body, separators=(",", ":"))


def _decode(line: bytes) -> Event:
    body: dict[str, Any] = json.loads(line)
    kind = _EVENTS[body.pop("event")]
    if kind is Asked:
        return Asked(TrialSpec(**body["spec"]))
    if kind is Scored:
        rung = body["rung"]
        if rung["units"] is not None:
            rung["units"] = _decode_units(**rung["units"])
        return Scored(body["key"], Rung(**rung))
    if kind is Tested:
        return Tested(TestScore(**body["score"]))
    return kind(**body)


def _encode_units(units: np.ndarray) -> dict[str, Any]:
    """Right or wrong in a bit each, anything else as little-endian float32."""
    packed = np.packbits(units) if units.dtype == bool else units.astype("<f4")
    return {
        "kind": "bits" if units.dtype == bool else "f4",
        "count": len(units),
        "data": base64.b64encode(packed.tobytes()).decode(),
    }


def _decode_units(kind: str, count: int, data: str) -> np.ndarray:
    raw = base64.b64decode(data)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=count).astype(bool)
    return np.frombuffer(raw, dtype="<f4", count=count).astype(np.float32)


class Journal:
    """An open journal. Only one process may write it; a second is refused while the first lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._lock()
        # Only after the lock: another writer's line may be half-written at this moment.
        self._repair()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(f"{self.path.parent} is being written by another run; wait for it or stop it first") from None

    def _repair(self) -> None:
        """Cuts off a last line without an end."""
        with self.path.open("rb+") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)

    def write(self, event: Event) -> None:
        self._file.write(_encode(event) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[Event]:
    """The events in order. Raises JournalError where the file is missing, damaged or of another format."""
    if not path.is_file():
        raise JournalError(f"{path.parent} is not a run folder: it has no {path.name}; give the folder that 'run' printed")
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = _decode(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(f"{path} is damaged at line {number}: {error}") from None
        if isinstance(event, Started) and event.format != FORMAT:
            raise JournalError(f"{path} has format {event.format}, and this version reads format {FORMAT}; run the study anew")
        yield event


@dataclass
class History:
    """What a journal says, added up."""

    started: Started | None
    trials_wanted: int
    trials: dict[str, Trial]
    curves: dict[str, list[Trained]]
    selected: list[int] | None
    chosen: Chosen | None
    tests: list[TestScore]

    @classmethod
    def read(cls, path: Path) -> History:
        history = cls(None, 0, {}, {}, None, None, [])
        for number, event in enumerate(read_journal(path), start=1):
            try:
                history.add(event)
            except KeyError as error:
                raise JournalError(f"{path} is damaged at line {number}: it tells of {error}, which was never asked") from None
        return history

    def add(self, event: Event) -> None:
        match event:
            case Started():
                self.started, self.trials_wanted = event, event.trials
            case Extended():
                # More trials reopen the selection; what was tested stays on record until it is tested anew.
                self.trials_wanted, self.selected, self.chosen, self.tests = event.trials, None, None, []
            case Asked():
                self.trials[event.spec.key] = Trial(event.spec)
            case Trained():
                trial = self.trials[event.key]
                trial.epochs, trial.seconds = event.epoch, event.seconds
                self.curves.setdefault(event.key, []).append(event)
            case Scored():
                rungs = self.trials[event.key].rungs
                rungs[:] = [r for r in rungs if r.epoch < event.rung.epoch] + [event.rung]
            case Checkpoint():
                self.trials[event.key].checkpoint = event.path
            case Ended():
                trial = self.trials[event.key]
                trial.status, trial.reason = event.status, event.reason
            case Selected():
                self.selected = event.trials
            case Chosen():
                self.chosen = event
            case Tested():
                self.tests.append(event.score)

    def search(self) -> list[Trial]:
        """The search's trials in the order asked."""
        return [t for t in self.trials.values() if t.spec.purpose == "search"]

    def curve(self, key: str) -> list[Trained]:
        """A job's epochs in order; an epoch trained again after a resume counts once, as trained last."""
        by_epoch = {event.epoch: event for event in self.curves.get(key, [])}
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]
