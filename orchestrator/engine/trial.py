"""A trial inside a worker: trains one spec epoch by epoch, scores it at its rungs and writes its checkpoints. Knows no Ray."""

from __future__ import annotations

import dataclasses
import io
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.utils import make_grid, save_image

from cluster.storage import Storage, open_storage
from methods.batch import Batch, RandomStream, seed_of
from methods.contracts import Method
from methods.data.budget import caption_tokens
from methods.data.records import IntArray, LabelledSubset, Split, TrainData
from methods.parts.modes import evaluating, threads
from methods.protocols.contract import Score, Trained, mean_score
from methods.training import EpochReport, Training, TrainSettings
from methods.world import World
from orchestrator.engine.records import Report, Rung, SlotSetup, TrialSpec
from orchestrator.folder import RunFolder, file_name, load_tensors, save_tensors
from search_spaces.domains import UserError, build

PICTURES = 8
"""Images in a picture."""

THUMBNAIL = 96
"""Pixels to which higher images are reduced in a picture, so that a report stays small."""


def settings_of(setup: SlotSetup, spec: TrialSpec, method: Method) -> TrainSettings:
    return TrainSettings(
        epochs=setup.rungs[-1],
        encoder=setup.encoder_for(method),
        seed=spec.seed,
        epoch_images=setup.epoch_images,
        precision=setup.precision,
    )


def training_of(setup: SlotSetup, spec: TrialSpec, world: World, turn: int = 0) -> Training:
    """The spec's training before its first step. Raises UserError where data, method and settings do not fit."""
    method = setup.methods[spec.method]
    config = build(method.config, dict(spec.values), spec.method)
    split = setup.split if spec.purpose == "refit" else setup.split.judged()[turn]
    data = whole_budget(setup) if spec.purpose == "refit" else split.train
    return Training(method, config, data, settings_of(setup, spec, method), world, held_back(split, data))


def held_back(split: Split, data: TrainData) -> IntArray | None:
    """int64 [N]: the labels of the budget that ``data`` hides from methods, -1 elsewhere; None where no image has one.

    Labels beyond the budget are not among them: nobody knows those.
    """
    if split.new_classes:
        return None
    budget = split.budget()
    label = np.full(len(data), -1, dtype=np.int64)
    label[budget.index] = budget.label
    label[data.label >= 0] = -1
    return label if (label >= 0).any() else None


def whole_budget(setup: SlotSetup) -> TrainData:
    """The training data with the validation labels shown too: for the final fit only.

    Few-shot parts hold different classes, so there it is all training images; after a cross-validation those of all groups.
    """
    split = setup.split
    if split.new_classes:
        return split.train
    label = split.train.label.copy()
    budget = split.budget()
    label[budget.index] = budget.label
    return dataclasses.replace(split.train, label=label, tokens=caption_tokens(split.labelled.data, label, split.train.words))


def trained(training: Training) -> Trained:
    """What the protocols score."""
    learner = training.learner
    return Trained(learner.encoder(), learner.predictor(), learner, training.uses_labels)


class Lockstep:
    """A spec's trainings, an epoch at a time: one for each turn of a cross-validation, in all other cases a single one."""

    def __init__(self, setup: SlotSetup, spec: TrialSpec, world: World) -> None:
        turns = 1 if spec.purpose == "refit" else len(setup.split.judged())
        self.trainings = [training_of(setup, spec, world, turn) for turn in range(turns)]
        self.first = self.trainings[0]

    def train_epoch(self) -> EpochReport:
        """One epoch of every turn: parts are means over the turns, seconds and images sums, steps those of the turn that has
        done the fewest. Ends where one diverges.
        """
        reports = []
        for training in self.trainings:
            reports.append(training.train_epoch())
            if not reports[-1].finite:
                break
        last = reports[-1]
        parts = {name: float(np.mean([r.parts[name] for r in reports if name in r.parts])) for name in last.parts}
        seconds, images = sum(r.seconds for r in reports), sum(r.images for r in reports)
        return dataclasses.replace(last, parts=parts, seconds=seconds, images=images, steps=min(r.steps for r in reports))

    def state(self) -> dict[str, Any]:
        """The first training's state, and under ``turns`` the others'."""
        others = [training.state() for training in self.trainings[1:]]
        return {**self.first.state(), **({"turns": others} if others else {})}

    def load(self, state: Mapping[str, Any]) -> None:
        for training, own in zip(self.trainings, [state, *state.get("turns", [])], strict=True):
            training.load(own)


class TrialRun:
    """One worker's trials, one after another.

    Every exception inside a trial comes back as a ``failed`` report with its reason; the stack trace stands in the trial's
    folder. A raised one would cost the slot its warm process.
    """

    def __init__(self, setup: SlotSetup, world: World) -> None:
        self.setup, self.world = setup, world
        torch.set_num_threads(setup.threads)
        self._job: TrialSpec | None = None
        self._training: Lockstep | None = None
        self._seconds = 0.0
        self._failed = ""
        self._owed: EpochReport | None = None

    @property
    def storage(self) -> Storage:
        return open_storage(self.setup.folder)

    @property
    def prefix(self) -> str:
        assert self._job is not None
        return RunFolder.trial(self._job.key)

    def begin(self, spec: TrialSpec) -> None:
        """Takes a spec, from its checkpoint where it has one."""
        self._job, self._training, self._seconds, self._failed, self._owed = spec, None, 0.0, "", None
        self._guard(self._build)

    def _build(self) -> None:
        assert self._job is not None
        training = Lockstep(self.setup, self._job, self.world)
        if self._job.checkpoint is not None:
            state = load_tensors(self.storage, self._job.checkpoint, self.world.device)
            training.load(state["training"])
            self._seconds = float(state["seconds"])
            # The study may have died before it heard of this epoch, which may be the last one: it is told again.
            self._owed = EpochReport(**state["report"])
        self._training = training

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError as error:
            self._failed = str(error)
        except Exception as error:
            self._failed = f"{type(error).__name__}: {error}".splitlines()[0]
            self.storage.put(f"{self.prefix}error-{self.world.rank}.txt", traceback.format_exc().encode())
        return None

    def advance(self) -> Report:
        """One epoch, and the score where it ends at a rung."""
        report = None if self._failed else self._guard(self._advance)
        if report is not None:
            return cast(Report, report)
        assert self._job is not None
        epoch = self._training.first.epoch if self._training else 0
        self._training = None
        return Report(self._job.key, epoch, "", {}, self._seconds, 0, "failed", self._failed)

    def _advance(self) -> Report:
        assert self._job is not None
        assert self._training is not None
        spec, training = self._job, self._training
        epoch, self._owed = self._owed or training.train_epoch(), None
        self._seconds += epoch.seconds
        if not epoch.finite:
            raise UserError(f"diverged: the loss was not a number in epoch {epoch.epoch}; a lower lr may help")
        last = epoch.epoch == training.first.settings.epochs
        judged = epoch.epoch in self.setup.rungs and epoch.epoch >= training.first.method.min_epochs
        refit = spec.purpose == "refit"
        rung = self._score() if (judged or last) and not refit and self.world.rank == 0 else None
        if last and self.world.rank == 0 and self._shows():
            self._draw()
        checkpoint = self._save(epoch) if (judged or last) and self.world.rank == 0 else None
        return Report(
            key=spec.key,
            epoch=epoch.epoch,
            stage=epoch.stage,
            parts=dict(epoch.parts),
            train_seconds=self._seconds,
            images=epoch.images,
            status="finished" if last else "running",
            rung=rung,
            checkpoint=checkpoint,
            pseudo_labels=epoch.pseudo_labels,
            steps=epoch.steps,
        )

    def _score(self) -> Rung:
        assert self._training is not None
        started = time.perf_counter()
        with torch.random.fork_rng():
            score, scored_on = validate(self.setup, self._training.trainings)
        objective = cast(Callable[[Score], float] | None, self.setup.objective)
        value = float(objective(score)) if objective else score.value
        if value != value:
            raise UserError("the score is not a number; the objective must return a finite number")
        seconds = time.perf_counter() - started
        # An objective of the user's own is no mean over units, so it cannot be paired.
        units = None if objective else comparable(score, scored_on, self.setup.split.validation.index)
        return Rung(self._training.first.epoch, value, score.n, score.low, score.high, scored_on, units, seconds)

    def _shows(self) -> bool:
        """Pictures are drawn for each method's defaults and for each finalist's first retraining."""
        assert self._job is not None
        return self._job.key.endswith("retrain-0") or (
            self._job.purpose == "search" and self._job.trial < len(self.setup.methods)
        )

    def _draw(self) -> None:
        assert self._training is not None
        training, device = self._training.first, self.world.device
        # Evenly spaced, since many data sets are ordered class by class.
        index = torch.linspace(0, len(training.data) - 1, min(PICTURES, len(training.data))).round().long()
        stream = RandomStream(seed_of(self.setup.seed, "pictures"), len(index), slice(None), device)
        batch = Batch(index.to(device), training.data.images.take(index).to(device), stream)
        with torch.no_grad(), evaluating(training.learner), torch.random.fork_rng():
            found = training.learner.pictures(batch)
        for name, images in found.items():
            shown = images.float().clamp(0, 1).cpu()
            if shown.shape[2] > THUMBNAIL:
                scale = THUMBNAIL / shown.shape[2]
                shown = F.interpolate(shown, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1)
            png = io.BytesIO()
            save_image(make_grid(shown, nrow=2, pad_value=1.0), png, format="png")
            self.storage.put(f"{self.prefix}{file_name(name)}.png", png.getbuffer())

    def _save(self, epoch: EpochReport) -> str:
        assert self._training is not None
        key = f"{self.prefix}checkpoint.pt"
        # Its seconds are in the sum already.
        report = {**dataclasses.asdict(epoch), "seconds": 0.0}
        save_tensors(self.storage, key, {"training": self._training.state(), "seconds": self._seconds, "report": report})
        return key


def validate(setup: SlotSetup, trainings: Sequence[Training]) -> tuple[Score, Any]:
    """The validation score, in a cross-validation of all turns together.

    Episodes; a label-trained method's on the validation part; a frozen encoder's over all labels.
    """
    few_shot = setup.protocol.name == "few_shot"
    if not few_shot and not trainings[0].uses_labels:
        score = setup.protocol.score(trained(trainings[0]), setup.split.budget(), None, setup.seed)
        return score, "elsewhere" if setup.protocol.elsewhere else "budget"
    scores = [
        setup.protocol.score(trained(training), split.labelled, split.validation, setup.seed)
        for training, split in zip(trainings, setup.split.judged(), strict=True)
    ]
    own = "elsewhere" if setup.protocol.elsewhere else "validation"
    return mean_score(scores), "turns" if setup.split.turns else "episodes" if few_shot else own


def comparable(score: Score, asked: str, validation: IntArray) -> np.ndarray | None:
    """A score's units that every method of the study answers, in one order, so that any two trials pair unit by unit.

    A frozen encoder is asked about the whole budget and a label-trained method about its validation part alone; the
    validation images are what both answer.
    """
    units = score.units()
    if units is None:
        return None
    order = np.argsort(score.index)
    if asked in ("validation", "budget"):
        order = order[np.isin(score.index[order], validation)]
    return units[order].astype(np.float32) if score.correct is None else score.correct[order]


def examine(setup: SlotSetup, spec: TrialSpec, path: str, test: LabelledSubset, device: torch.device) -> Score:
    """The test score of the model in ``path``; a probe on it may use every label of the budget."""
    split, few_shot = setup.split, setup.protocol.name == "few_shot"
    with threads(setup.threads):
        training = load_training(setup, spec, path, device)
        fit = split.labelled if few_shot or (training.uses_labels and spec.purpose != "refit") else split.budget()
        return setup.protocol.score(trained(training), fit, test, setup.seed)


def load_training(setup: SlotSetup, spec: TrialSpec, path: str, device: torch.device) -> Training:
    training = training_of(setup, spec, World(device=device))
    training.load(load_tensors(open_storage(setup.folder), path, device)["training"])
    return training
