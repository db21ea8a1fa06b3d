"""The typed records that pass between the stages of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.storage import Storage
from methods.contracts import Method
from methods.data.records import Split
from methods.parts.encoders import EncoderSpec
from methods.protocols.confidence import Reliability
from methods.protocols.contract import Protocol
from methods.tasks.contract import Task
from methods.training import Precision
from methods.training.clock import Fidelity
from search_spaces.domains import Value

Status = Literal["running", "finished", "pruned", "failed"]
Purpose = Literal["search", "fold", "curve", "refit"]
Origin = Literal["defaults", "sampled", "forked"]


@dataclass(frozen=True)
class Configuration:
    """A method with its active knobs.

    Attributes:
        method: its name.
        values: its active knobs.
        origin: the method's defaults, the sampler's suggestion, or another trial's knobs with changes.
        encoder: label of the encoder and its start, where the study compares several; else blank.
    """

    method: str
    values: Mapping[str, Value]
    origin: Origin = "sampled"
    encoder: str = ""


@dataclass(frozen=True)
class TrialSpec:
    """One configuration to be trained with one seed.

    Attributes:
        key: unique in the run folder, and its folder's name under ``trials/``.
        trial: number of the search trial whose configuration this is.
        method: name of the method.
        values: its active knobs.
        seed: of the training.
        purpose: a trial of the search; a finalist that one fold judges; the winner on fewer labels, for its learning curve;
            the winner trained on the whole budget.
        origin: where the configuration came from.
        repeat: which of a finalist's trainings of this purpose (and fold), from 0.
        parent: key of the trial whose weights it starts from, or None.
        fold, folds: which of how many folds judges it, from 0; 0 of 1 for the search's own division.
        share: of the division's training labels; below 1 for the learning curve.
        encoder: label of the encoder and its start, where the study compares several; else blank.
    """

    key: str
    trial: int
    method: str
    values: Mapping[str, Value]
    seed: int
    purpose: Purpose = "search"
    origin: Origin = "sampled"
    repeat: int = 0
    parent: str | None = None
    fold: int = 0
    folds: int = 1
    share: float = 1.0
    encoder: str = ""

    @property
    def title(self) -> str:
        """The method, and with which encoder where the study compares several."""
        return f"{self.method} with {self.encoder}" if self.encoder else self.method


@dataclass(frozen=True)
class Segment:
    """One stretch of training of one trial in a slot.

    Attributes:
        key: of the trial.
        to: how far it is trained; there it is scored and its checkpoint is written.
        start: storage key of the checkpoint that it goes on from (its own, another trial's), or None to start from nothing.
        onward: further stops at which the slot goes on at once if the strategy continues the trial to just there.
    """

    key: str
    to: Fidelity
    start: str | None = None
    onward: tuple[Fidelity, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """What a slot is handed: a trial and the segment of it to train.

    Attributes:
        illustrate: whether pictures of what the method sees are drawn at the trial's end.
    """

    spec: TrialSpec
    segment: Segment
    illustrate: bool = False


@dataclass(frozen=True)
class Rung:
    """A trial's score at a rung.

    Attributes:
        epoch: epochs trained.
        value: what the search maximises.
        n: images (or episodes) scored.
        low, high: 95% interval of the score's value.
        scored_on: which labels were scored: the ``validation`` part, ``episodes``, the episodes of all ``folds`` of a
            cross-validation by group, or images ``elsewhere``, of another data set.
        units: what each unit that every method answers contributes, so that two trials pair: bool [m], the validation images
            in order, answered rightly or not; or float32 [m], the episodes' accuracies. None where scores are not means.
        seconds: spent scoring.
    """

    epoch: float
    value: float
    n: int
    low: float
    high: float
    scored_on: Literal["validation", "episodes", "folds", "elsewhere"]
    units: np.ndarray | None
    seconds: float


@dataclass(frozen=True)
class Report:
    """What a slot says after each epoch, and at the end of a segment.

    Attributes:
        key: the trial's.
        epoch: epochs trained.
        stage: name of the method's stage.
        parts: loss and its parts, means over the epoch; and the health signals at its end.
        train_seconds: training time of the trial so far.
        images: training images drawn in this epoch.
        status: ``running`` inside a segment, ``reached`` at its end, or ``failed``.
        done: how far the trial has come.
        reason: why it failed, one line.
        rung: the score, at a segment's end.
        checkpoint: storage key of the checkpoint just written, or None.
        pseudo_labels: how many used pseudo-labels each class got; empty where the method gives none.
        steps: done in the method's stage so far.
    """

    key: str
    epoch: float
    stage: str
    parts: Mapping[str, float]
    train_seconds: float
    images: int
    status: Literal["running", "reached", "failed"]
    done: Fidelity
    reason: str = ""
    rung: Rung | None = None
    checkpoint: str | None = None
    pseudo_labels: tuple[int, ...] = ()
    steps: int = 0


@dataclass(frozen=True)
class FeatureTable:
    """Embeddings by a frozen encoder, in the run folder.

    Attributes:
        asked: the encoder as the study names it.
        spec: the encoder that embedded, at the size that its time allowed.
        views: of each image.
        pool, test: keys of the embeddings of the pool and of the test images; blank where there are none.
        size: height and width in pixels at which the images were shown; None as they are.
    """

    asked: EncoderSpec
    spec: EncoderSpec
    views: int
    pool: str
    test: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class SlotSetup:
    """What every slot of a study shares; it travels once through the object store.

    Attributes:
        split: the data without the test part: a slot cannot reach test labels.
        methods: by name.
        encoder, vit_encoder: what is trained, by what the method needs.
        protocol: how trainings are scored.
        objective: from a Score to what the search maximises, or None for its value.
        top: the highest rung; schedules run to it.
        epoch_images, precision, seed: as in the study.
        task: what is learned and how it is judged.
        storage: of the run folder, reachable from every node.
        threads: torch threads of a worker.
        most_parameters, most_ms: what a model may cost at most, in parameters and milliseconds an image; None where all may.
        features: embeddings by the frozen encoders of the study's feature methods.
        encoders: what takes the place of ``encoder`` and ``vit_encoder`` where the study compares several, by label.
        offered: the labels that each method may be tried with.
    """

    split: Split
    methods: Mapping[str, Method]
    encoder: EncoderSpec
    vit_encoder: EncoderSpec
    protocol: Protocol
    objective: object
    top: Fidelity
    epoch_images: int | None
    precision: Precision
    seed: int
    task: Task
    storage: Storage
    threads: int
    most_parameters: int | None = None
    most_ms: float | None = None
    features: tuple[FeatureTable, ...] = ()
    encoders: Mapping[str, EncoderSpec] = field(default_factory=dict)
    offered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def encoder_for(self, spec: TrialSpec) -> EncoderSpec:
        """What a trial trains, or what embedded its features."""
        table = self.table_for(spec)
        return self._asked(spec.method, spec.encoder) if table is None else table.spec

    def table_for(self, spec: TrialSpec) -> FeatureTable | None:
        """The embeddings that a trial of a feature method is fitted on, or None."""
        if not self.methods[spec.method].on_features:
            return None
        asked = self._asked(spec.method, spec.encoder)
        return next((table for table in self.features if table.asked == asked), None)

    def frozen(self) -> list[EncoderSpec]:
        """The encoders on whose features methods are fitted, each once."""
        names = [name for name, method in self.methods.items() if method.on_features]
        return list(dict.fromkeys(self._asked(name, label) for name in names for label in self.offered.get(name, ("",))))

    def _asked(self, method: str, label: str) -> EncoderSpec:
        if label:
            return self.encoders[label]
        return self.vit_encoder if self.methods[method].encoder == "vit" else self.encoder


@dataclass
class Trial:
    """A trial's history as the journal tells it.

    Attributes:
        spec: what is trained.
        status: running until it ended.
        reason: why it failed or was stopped.
        rungs: its scores, by ascending epoch.
        epochs: epochs trained, a fork's with those of the trial whose weights it took.
        inherited: epochs of them that another trial trained.
        seconds: its own training time.
        checkpoint: the newest one, or None.
        done: how far the newest checkpoint has come, or None.
        kept: epochs and seconds that the newest checkpoint holds.
        segment: the one under way, or None where the trial waits for a decision or has ended.
    """

    spec: TrialSpec
    status: Status = "running"
    reason: str = ""
    rungs: list[Rung] = field(default_factory=list)
    epochs: float = 0
    inherited: float = 0
    seconds: float = 0.0
    checkpoint: str | None = None
    done: Fidelity | None = None
    kept: tuple[float, float] = (0, 0.0)
    segment: Segment | None = None

    @property
    def seconds_from_nothing(self) -> float:
        """What the training would have taken had it not begun from another trial's weights."""
        own = self.epochs - self.inherited
        return self.seconds * self.epochs / own if self.inherited and own > 0 else self.seconds

    @property
    def own_epochs(self) -> float:
        """Epochs that it has trained itself."""
        return self.epochs - self.inherited

    @property
    def scoring(self) -> float:
        """Seconds that its newest scoring took."""
        return self.rungs[-1].seconds if self.rungs else 0.0

    @property
    def busy(self) -> float:
        """Seconds in which it kept its slot busy."""
        return self.seconds + sum(rung.seconds for rung in self.rungs)

    @property
    def busy_again(self) -> float:
        """Seconds in which another such training, from nothing, would keep a slot busy."""
        return self.seconds_from_nothing + sum(rung.seconds for rung in self.rungs)

    @property
    def effort(self) -> float:
        """What another such training costs: epochs, which are the same in every run of a study; by the clock seconds."""
        return self.busy_again if self.done is not None and self.done.unit == "seconds" else float(self.epochs)

    @property
    def value(self) -> float | None:
        """The newest score, or None."""
        return self.rungs[-1].value if self.rungs else None

    @property
    def undecided(self) -> bool:
        """Whether the trial has ended a segment and waits for what comes next."""
        return self.status == "running" and self.segment is None


@dataclass(frozen=True)
class TestScore:
    """One model's score on the test set.

    Attributes:
        key, trial: of the training, and the number of the search trial whose configuration it is.
        value, n, low, high: the score, over how many, and its 95% interval by their number alone.
        parameters: of the model, trained or not.
        ms: milliseconds an image, in batches, where it was tested.
        reliability: of its confidences, where these are calibrated.
    """

    key: str
    trial: int
    value: float
    n: int
    low: float
    high: float
    parameters: int = 0
    ms: float = 0.0
    reliability: Reliability | None = None
