"""The events of a journal: every decision and every outcome of a study, with its time."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from methods.protocols.confidence import Reliability, Scaling
from methods.training.clock import Fidelity
from orchestrator.engine.records import Rung, Segment, Status, TestScore, TrialSpec

FORMAT = 4
"""Of the journal and the run folder around it."""

StepName = Literal["folds", "finalists", "distilled"]
"""From the winner to an ensemble: the models of its folds beside it, then those of other finalists; and all as one model."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """``time``: seconds since 1970 (UTC) at which the event was written."""

    event: ClassVar[str]
    time: float = 0.0


@dataclass(frozen=True)
class Started(Timed):
    """The study began: format of the journal, the trials asked for (None where other budgets end it), and versions."""

    event: ClassVar[str] = "started"
    format: int
    trials: int | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Opened(Timed):
    """A process took the study up: at its start, and again at every resume. ``command`` is when its command began."""

    event: ClassVar[str] = "opened"
    command: float


@dataclass(frozen=True)
class Proposed(Timed):
    """What completed a study that names no methods: each method with its reason, further fields that were settled with them,
    and what else was said, a line each.
    """

    event: ClassVar[str] = "proposed"
    methods: dict[str, str]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people: a line a method, then the notes."""
        width = max(map(len, self.methods), default=0)
        return [*(f"{name:<{width}}  {why}" for name, why in self.methods.items()), *self.notes]


@dataclass(frozen=True)
class Extended(Timed):
    """The search was given more trials: their new number in all."""

    event: ClassVar[str] = "extended"
    trials: int


@dataclass(frozen=True)
class TrialStarted(Timed):
    """A configuration was chosen to be trained."""

    event: ClassVar[str] = "trial"
    spec: TrialSpec


@dataclass(frozen=True)
class SegmentStarted(Timed):
    """A stretch of training was decided on."""

    event: ClassVar[str] = "segment"
    segment: Segment


@dataclass(frozen=True)
class Trained(Timed):
    """An epoch ended: losses and health signals, the pseudo-labels of each class, and the steps of the stage so far."""

    event: ClassVar[str] = "trained"
    key: str
    epoch: float
    seconds: float
    parts: dict[str, float]
    pseudo_labels: list[int] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Scored(Timed):
    """A score at the end of a segment; ``at`` is the fidelity that the segment was to reach."""

    event: ClassVar[str] = "scored"
    key: str
    rung: Rung
    at: Fidelity


@dataclass(frozen=True)
class Reached(Timed):
    """A segment ended: how far the trial is, and the storage key of its checkpoint."""

    event: ClassVar[str] = "reached"
    key: str
    done: Fidelity
    checkpoint: str


@dataclass(frozen=True)
class Ended(Timed):
    """A trial ended."""

    event: ClassVar[str] = "ended"
    key: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Forgotten(Timed):
    """A trial's checkpoint is of no more use, and is deleted."""

    event: ClassVar[str] = "forgotten"
    key: str


@dataclass(frozen=True)
class SearchEnded(Timed):
    """The search is over: because of what, in words."""

    event: ClassVar[str] = "search_ended"
    reason: str


@dataclass(frozen=True)
class Selected(Timed):
    """The finalists' trial numbers, best first by the search's score; into how many folds the labels are divided for them,
    how many of these judge, and whether the first is what the search's trials were judged by. ``baseline`` is the number of
    the finalist that others must clearly beat; None where there is none.
    """

    event: ClassVar[str] = "selected"
    trials: list[int]
    folds: int = 1
    rounds: int = 1
    nested: bool = False
    baseline: int | None = None


@dataclass(frozen=True)
class Chosen(Timed):
    """The winner, chosen by validation before any test label was read."""

    event: ClassVar[str] = "chosen"
    trial: int
    key: str


@dataclass(frozen=True)
class Calibrated(Timed):
    """How the winner's confidences are calibrated, found from its out-of-fold answers before the test is opened."""

    event: ClassVar[str] = "calibrated"
    scaling: Scaling


@dataclass(frozen=True)
class Member:
    """A finalist in an ensemble: its trial number, its share of the vote, what calibrates it, and how many models it brings."""

    trial: int
    weight: float
    scaling: Scaling
    models: int


@dataclass(frozen=True)
class Ensembled(Timed):
    """The ensemble of finalists, the winner first, found from their out-of-fold answers before the test is opened; it is
    exported where the study wants it.

    ``alone`` and ``together`` are the out-of-fold scores of the winner and of the ensemble, whose weights were chosen on the
    other folds; ``gain``, ``low`` and ``high`` their paired difference with its 95% interval, over ``n`` images. ``scaling``
    calibrates the whole. ``exported``: whether the study wants it and every model can take part.
    """

    event: ClassVar[str] = "ensembled"
    members: tuple[Member, ...]
    scaling: Scaling
    alone: float
    together: float
    gain: float
    low: float
    high: float
    n: int
    exported: bool = False


@dataclass(frozen=True)
class Distilled(Timed):
    """The ensemble was distilled into one model: the storage key of its file, the share of the pool's images of which it says
    what the ensemble says, and the seconds that it took.
    """

    event: ClassVar[str] = "distilled"
    file: str
    agreement: float
    seconds: float


@dataclass(frozen=True)
class Step:
    """The test of one step from the winner to what is exported: its score, and its paired gain over the step before with the
    95% interval.
    """

    name: StepName
    score: TestScore
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class EnsembleTested(Timed):
    """The test set was asked about the winner with the models of its folds, and about the whole ensemble."""

    event: ClassVar[str] = "ensemble_tested"
    gains: tuple[Step, ...]


@dataclass(frozen=True)
class Predicted(Timed):
    """What the winner's test score will be, said before the test is opened.

    ``low`` and ``high`` are an interval of probability ``level``; ``parts`` are the out-of-fold score and its corrections.
    """

    event: ClassVar[str] = "predicted"
    value: float
    low: float
    high: float
    level: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Tested(Timed):
    """A finalist's model was asked about the test images."""

    event: ClassVar[str] = "tested"
    score: TestScore


Event = (
    Started | Proposed | Opened | Extended | TrialStarted | SegmentStarted | Trained | Scored | Reached | Ended | Forgotten
    | SearchEnded | Selected | Chosen | Calibrated | Ensembled | Distilled | Predicted | Tested | EnsembleTested
)  # fmt: skip
_EVENTS: dict[str, type] = {e.event: e for e in Event.__args__}


def encode(event: Event) -> str:
    """An event as one line of JSON, time and kind first."""
    fields = asdict(event)
    body = {"time": fields.pop("time"), "event": event.event, **fields}
    if isinstance(event, TrialStarted) and not event.spec.encoder:
        del body["spec"]["encoder"]
    if isinstance(event, Scored) and event.rung.units is not None:
        body["rung"]["units"] = _encode_units(event.rung.units)
    return json.dumps(body, separators=(",", ":"))


def decode(line: bytes) -> Event:
    """The event of a line. Raises ValueError, KeyError, TypeError or AttributeError where it is none."""
    body: dict[str, Any] = json.loads(line)
    kind = _EVENTS[body.pop("event")]
    for name, make in (("spec", TrialSpec), ("segment", segment_of), ("rung", _rung), ("score", _test_score), ("at", Fidelity),
                       ("done", Fidelity), ("scaling", Scaling), ("members", _member), ("gains", _step)):  # fmt: skip
        if name in body:
            given = body[name]
            body[name] = tuple(make(**each) for each in given) if isinstance(given, list) else make(**given)
    return kind(**body)


def segment_of(key: str, to: dict[str, Any], start: str | None, onward: list[dict[str, Any]]) -> Segment:
    """A segment from its plain values."""
    return Segment(key, Fidelity(**to), start, tuple(Fidelity(**each) for each in onward))


def _test_score(reliability: dict[str, Any] | None = None, **fields: Any) -> TestScore:
    if reliability is None:
        return TestScore(**fields)
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in reliability.items()}
    return TestScore(reliability=Reliability(**known), **fields)


def _member(scaling: dict[str, Any], **fields: Any) -> Member:
    return Member(scaling=Scaling(**scaling), **fields)


def _step(score: dict[str, Any], **fields: Any) -> Step:
    return Step(score=_test_score(**score), **fields)


def _rung(units: dict[str, Any] | None, **fields: Any) -> Rung:
    return Rung(units=None if units is None else _decode_units(**units), **fields)


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
