"""The typed records that pass between the stages of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from methods.contracts import Method
from methods.data.records import Split
from methods.parts.encoders import EncoderSpec
from methods.protocols.contract import Protocol
from methods.training import Precision
from search_spaces.domains import Value

Status = Literal["running", "finished", "pruned", "failed"]
Purpose = Literal["search", "retrain", "refit"]


@dataclass(frozen=True)
class TrialSpec:
    """One training for a slot.

    Attributes:
        key: unique in the run folder, and its folder's name under ``trials/``.
        trial: number of the search trial whose configuration this is.
        method: name of the method.
        values: its active knobs.
        seed: of the training.
        purpose: a trial of the search; a finalist retrained with a fresh seed; a finalist trained on the whole budget.
        checkpoint: path to go on from, or None.
    """

    key: str
    trial: int
    method: str
    values: Mapping[str, Value]
    seed: int
    purpose: Purpose = "search"
    checkpoint: str | None = None


@dataclass(frozen=True)
class Rung:
    """A trial's score at a rung.

    Attributes:
        epoch: epochs trained.
        value: what the search maximises.
        n: images (or episodes) scored.
        low, high: 95% interval of the score's value.
        scored_on: which labels were scored: the ``validation`` part, the whole ``budget`` (cross-validated), ``episodes``, the
            episodes of all ``folds`` of a cross-validation by group, or images ``elsewhere``, of another data set.
        units: what each unit that every method answers contributes, so that two trials pair: bool [m], the validation images
            in order, answered rightly or not; or float32 [m], the episodes' accuracies. None where scores are not means.
        seconds: spent scoring.
    """

    epoch: int
    value: float
    n: int
    low: float
    high: float
    scored_on: Literal["validation", "budget", "episodes", "folds", "elsewhere"]
    units: np.ndarray | None
    seconds: float


@dataclass(frozen=True)
class Report:
    """What a slot says after each epoch.

    Attributes:
        key: the job's.
        epoch: epochs trained.
        stage: name of the method's stage.
        parts: loss and its parts, means over the epoch; and the health signals at its end.
        train_seconds: training time of the job so far.
        images: training images drawn in this epoch.
        status: ``running`` until the last epoch.
        reason: why it failed, one line.
        rung: the score, at a rung.
        checkpoint: path of the checkpoint just written, or None.
        pseudo_labels: how many used pseudo-labels each class got; empty where the method gives none.
        steps: done in the method's stage so far.
    """

    key: str
    epoch: int
    stage: str
    parts: Mapping[str, float]
    train_seconds: float
    images: int
    status: Literal["running", "finished", "failed"]
    reason: str = ""
    rung: Rung | None = None
    checkpoint: str | None = None
    pseudo_labels: tuple[int, ...] = ()
    steps: int = 0


@dataclass(frozen=True)
class SlotSetup:
    """What every slot of a study shares; it travels once through the object store.

    Attributes:
        split: the data without the test part: a slot cannot reach test labels.
        methods: by name.
        encoder, vit_encoder: what is trained, by what the method needs.
        protocol: how trainings are scored.
        objective: from a Score to what the search maximises, or None for its value.
        rungs: epochs at which trials are scored.
        epoch_images, precision, seed: as in the study.
        folder: the run folder, reachable from every node.
        threads: torch threads of a worker.
    """

    split: Split
    methods: Mapping[str, Method]
    encoder: EncoderSpec
    vit_encoder: EncoderSpec
    protocol: Protocol
    objective: object
    rungs: tuple[int, ...]
    epoch_images: int | None
    precision: Precision
    seed: int
    folder: str
    threads: int

    def encoder_for(self, method: Method) -> EncoderSpec:
        return self.vit_encoder if method.encoder == "vit" else self.encoder


@dataclass
class Trial:
    """A job's history as the journal tells it.

    Attributes:
        spec: what was asked.
        status: running until it ended.
        reason: why it failed or was stopped.
        rungs: its scores, by ascending epoch.
        epochs: epochs trained.
        seconds: training time.
        checkpoint: the newest one, or None.
    """

    spec: TrialSpec
    status: Status = "running"
    reason: str = ""
    rungs: list[Rung] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    checkpoint: str | None = None

    @property
    def value(self) -> float | None:
        """The newest score, or None."""
        return self.rungs[-1].value if self.rungs else None


@dataclass(frozen=True)
class TestScore:
    """One model's score on the test set."""

    key: str
    trial: int
    value: float
    n: int
    low: float
    high: float
