"""A slot's work inside a worker: trains one segment epoch by epoch, scores it at its end and writes the checkpoint.

Knows no Ray.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.utils import make_grid, save_image

from cluster.errors import ClusterError
from methods.batch import Batch, RandomStream, seed_of
from methods.contracts import Learner
from methods.data.folding import thinned
from methods.data.records import Split
from methods.parts.encoders import parameter_count
from methods.parts.modes import device_of, evaluating
from methods.protocols.contract import Answers, Score, Trained
from methods.training import EpochReport, FeatureTraining, Training, TrainSettings
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.engine.records import Assignment, Report, Rung, Segment, SlotSetup, TrialSpec
from orchestrator.features import remember_features
from orchestrator.folder import RunFolder, file_name, load_tensors, save_tensors
from search_spaces.domains import UserError, build

PICTURES = 8
"""Images in a picture."""

COSTED = 64
"""Images of a batch in which a model's time is taken."""

SLOW = 0.2
"""Seconds a batch from which its time is taken once."""

THUMBNAIL = 96
"""Pixels to which higher images are reduced in a picture, so that a report stays small."""


def division_of(setup: SlotSetup, spec: TrialSpec) -> Split:
    """The division that the trial learns from and is judged by."""
    split = setup.split if spec.folds == 1 else setup.task.folds(setup.split, spec.folds, setup.seed)[spec.fold]
    return split if spec.share == 1 else thinned(split, spec.share, spec.seed)


def training_of(setup: SlotSetup, spec: TrialSpec, world: World, division: Split | None = None) -> Training | FeatureTraining:
    """The trial's training before its first step.

    Args:
        division: one of the ``divisions`` that the trial is trained on; None for its first.
    Raises:
        UserError: data, method and settings do not fit.
    """
    method = setup.methods[spec.method]
    config = build(method.config, dict(spec.values), spec.method)
    refit = spec.purpose == "refit"
    split = division or (setup.split if refit else setup.task.divisions(division_of(setup, spec))[0])
    data = setup.task.final_data(split) if refit else split.train
    by_clock = setup.top.unit == "seconds"
    settings = TrainSettings(
        epochs=None if by_clock else int(setup.top.amount),
        encoder=setup.encoder_for(spec),
        seed=spec.seed,
        epoch_images=setup.epoch_images,
        precision=setup.precision,
        seconds=setup.top.amount if by_clock else None,
    )
    if not method.on_features:
        return Training(method, config, data, settings, world, setup.task.truth(split, data))
    remember_features(setup, spec, world.device)
    return FeatureTraining(method, config, data, settings, world, setup.task.truth(split, data))


def trained(training: Training | FeatureTraining) -> Trained:
    """What the protocols score."""
    learner = training.learner
    own = learner if isinstance(learner, Learner) else None
    return Trained(learner.encoder(), learner.predictor(), own, training.uses_labels)


class FoldTrainings:
    """A trial's trainings, an epoch at a time: one for each fold of a cross-validation, in all other cases a single one."""

    def __init__(self, setup: SlotSetup, spec: TrialSpec, world: World) -> None:
        self.split = division_of(setup, spec)
        divisions = (self.split,) if spec.purpose == "refit" else setup.task.divisions(self.split)
        self.trainings = [training_of(setup, spec, world, division) for division in divisions]
        self.first = self.trainings[0]

    @property
    def done(self) -> Fidelity:
        return min((training.done for training in self.trainings), key=lambda done: done.amount)

    def train(self, until: float) -> EpochReport:
        """One epoch of every fold, or less where ``until`` comes first: parts are means over the folds, seconds and images
        sums, steps those of the fold that has done the fewest. Ends where one diverges.
        """
        reports = []
        for training in self.trainings:
            # By the clock a fold may be there while another has images of its epoch left to draw.
            if training.done.amount >= until:
                continue
            reports.append(training.train(until))
            if not reports[-1].finite:
                break
        last = reports[-1]
        parts = {name: float(np.mean([r.parts[name] for r in reports if name in r.parts])) for name in last.parts}
        seconds, images = sum(r.seconds for r in reports), sum(r.images for r in reports)
        return dataclasses.replace(last, parts=parts, seconds=seconds, images=images, steps=min(r.steps for r in reports))

    def idle(self) -> EpochReport:
        """What an epoch tells in which nothing was left to train."""
        first = self.first
        assert isinstance(first, Training), "no feature method goes on from a checkpoint"
        return EpochReport(first.epoch, self.done, first.stage.name, {}, 0.0, 0, True)

    def state(self) -> dict[str, Any]:
        """The first training's state, and under ``folds`` the others'."""
        others = [training.state() for training in self.trainings[1:]]
        return {**self.first.state(), **({"folds": others} if others else {})}

    def load(self, state: Mapping[str, Any], fork: bool) -> None:
        """Goes on from ``state``, in a fork from another configuration's."""
        for training, own in zip(self.trainings, [state, *state.get("folds", [])], strict=True):
            (training.adopt if fork else training.load)(own)


class SegmentRun:
    """One worker's segments, one after another.

    Every exception inside a segment comes back as a ``failed`` report with its reason; the stack trace stands in the trial's
    folder. A raised one would cost the slot its warm process.
    """

    def __init__(self, setup: SlotSetup, world: World) -> None:
        self.setup, self.world = setup, world
        self.folder = RunFolder(setup.storage)
        torch.set_num_threads(setup.threads)
        self._given: Assignment | None = None
        self._segment: Segment | None = None
        self._trainings: FoldTrainings | None = None
        self._seconds = 0.0
        self._failed = ""
        self._at = ""

    @property
    def failed(self) -> bool:
        """Whether the segment handed over last cannot be trained; ``advance`` says why."""
        return bool(self._failed)

    @property
    def given(self) -> Assignment:
        """What was handed over last."""
        assert self._given is not None
        return self._given

    def begin(self, given: Assignment) -> None:
        """Takes a segment. Where this slot still holds the trial at just its starting point, nothing is built or loaded."""
        held = self._given is not None and self._given.spec == given.spec and bool(self._at)
        self._given, self._segment, self._failed = given, given.segment, ""
        if not (held and self._trainings is not None and self._at == given.segment.start):
            self._trainings, self._seconds, self._at = None, 0.0, ""
            self._guard(self._build)

    def _build(self) -> None:
        start = self.given.segment.start
        trainings = FoldTrainings(self.setup, self.given.spec, self.world)
        if start is not None:
            state = load_tensors(self.setup.storage, start, self.world.device)
            # A fork's first segment starts from its parent's checkpoint.
            fork = PurePosixPath(start).parent.name != self.given.spec.key
            trainings.load(state["training"], fork)
            self._seconds = 0.0 if fork else float(state["seconds"])
        elif self.given.spec.purpose == "search":
            self._check_cost(trainings.first)
        self._trainings = trainings

    def _check_cost(self, training: Training | FeatureTraining) -> None:
        """Raises UserError where the model would cost more than the study allows."""
        most, most_ms = self.setup.most_parameters, self.setup.most_ms
        if most is None and most_ms is None:
            return
        # A feature method has no head before it is fitted; heads cost next to nothing.
        model = trained(training) if isinstance(training, Training) else Trained(training.encoder)
        parameters, ms = cost_of(model, self.setup.split)
        if most is not None and parameters > most:
            raise UserError(f"the model has {parameters:,} parameters, and limit.parameters is {most:,}")
        if most_ms is not None and ms > most_ms:
            raise UserError(f"the model takes {ms:.3g} ms an image, and limit.predict_ms is {most_ms:g}")

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (UserError, ClusterError) as error:
            self._failed = str(error)
        except Exception as error:
            self._failed = f"{type(error).__name__}: {error}".splitlines()[0]
            key = self.folder.trial(self.given.spec.key, f"error-{self.world.rank}.txt")
            # The reason is what counts; its trace may have no place to go.
            with suppress(ClusterError):
                self.folder.write_text(key, traceback.format_exc())
        return None

    def advance(self) -> Report:
        """One epoch, and score and checkpoint where it ends the segment."""
        report = None if self._failed else self._guard(self._advance)
        if report is not None:
            return cast(Report, report)
        epoch = self._trainings.first.epoch if self._trainings else 0
        self._trainings, self._at = None, ""
        none = Fidelity(self.setup.top.unit, 0)
        return Report(self.given.spec.key, epoch, "", {}, self._seconds, 0, "failed", none, self._failed)

    def _advance(self) -> Report:
        assert self._trainings is not None
        assert self._segment is not None
        spec, trainings, segment = self.given.spec, self._trainings, self._segment
        # From here on the training is past the checkpoint that it was at.
        self._at = ""
        there = trainings.done.amount >= segment.to.amount
        epoch = trainings.idle() if there else trainings.train(segment.to.amount)
        self._seconds += epoch.seconds
        if not epoch.finite:
            raise UserError(f"diverged: the loss was not a number in epoch {epoch.epoch}; a lower lr may help")
        reached = trainings.done.amount >= segment.to.amount
        first = self.world.rank == 0
        rung = self._score(epoch) if reached and spec.purpose != "refit" and first else None
        if reached and segment.to.amount >= self.setup.top.amount and first and self.given.illustrate:
            self._draw()
        checkpoint = self._save() if reached else None
        if checkpoint is not None:
            # Where the study continues the trial to just the next stop, this slot goes on without being told.
            self._at = checkpoint
            onward = segment.onward[:1]
            self._segment = dataclasses.replace(segment, to=onward[0], onward=segment.onward[1:]) if onward else segment
        return Report(
            key=spec.key,
            epoch=epoch.epoch,
            stage=epoch.stage,
            parts=dict(epoch.parts),
            train_seconds=self._seconds,
            images=epoch.images,
            status="reached" if reached else "running",
            done=trainings.done,
            rung=rung,
            checkpoint=checkpoint,
            pseudo_labels=epoch.pseudo_labels,
            steps=epoch.steps,
        )

    def _score(self, epoch: EpochReport) -> Rung:
        assert self._trainings is not None
        started = time.perf_counter()
        models = [trained(training) for training in self._trainings.trainings]
        with torch.random.fork_rng():
            judged = self.setup.task.judge(self.setup.protocol, models, self._trainings.split, self.setup.seed)
        score = judged.score
        if self.given.spec.purpose == "fold" and score.answers is not None:
            self._keep(score.index, score.answers)
        objective = cast(Callable[[Score], float] | None, self.setup.objective)
        value = float(objective(score)) if objective else score.value
        if not math.isfinite(value):
            raise UserError("the score is not a number; the objective must return a finite number")
        seconds = time.perf_counter() - started
        # An objective of the user's own is no mean over units, so it cannot be paired.
        units = None if objective else judged.units
        return Rung(epoch.epoch, value, score.n, score.low, score.high, judged.scored_on, units, seconds)

    def _keep(self, index: np.ndarray, answers: Answers) -> None:
        """The out-of-fold answers, for whoever calibrates or compares later."""
        key = self.folder.trial(self.given.spec.key, "answers.pt")
        columns = {"index": index, "label": answers.label, "logits": answers.logits}
        save_tensors(self.setup.storage, key, {name: torch.from_numpy(each) for name, each in columns.items()})

    def _draw(self) -> None:
        assert self._trainings is not None
        training, device = self._trainings.first, self.world.device
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
            self.setup.storage.put(self.folder.trial(self.given.spec.key, f"{file_name(name)}.png"), png.getbuffer())

    def _save(self) -> str:
        assert self._trainings is not None
        # Named by how far it is: what a decision was based on stays there while a later one is written.
        key = self.folder.trial(self.given.spec.key, f"checkpoint-{self._trainings.done.amount:g}.pt")
        if self.world.rank == 0:
            save_tensors(self.setup.storage, key, {"training": self._trainings.state(), "seconds": self._seconds})
        return key


def cost_of(model: Trained, split: Split) -> tuple[int, float]:
    """Parameters of what predicts (else of the encoder), and milliseconds an image in a batch here.

    The fastest of three batches; of a slow model the first, which tells enough: every model that is tested is timed.
    """
    asked: nn.Module = model.predictor or model.encoder
    index = torch.arange(min(COSTED, len(split.train)))
    # Pixels, since embeddings of known images may be looked up.
    images, seconds = split.train.images.take(index).to(device_of(asked)), []
    with torch.no_grad(), evaluating(asked):
        for _ in range(3):
            began = time.perf_counter()
            asked(images).sum().item()
            seconds.append(time.perf_counter() - began)
            if seconds[-1] > SLOW:
                break
    return parameter_count(asked), round(1000 * min(seconds) / len(index), 6)


def load_training(setup: SlotSetup, spec: TrialSpec, checkpoint: str, device: torch.device) -> Training | FeatureTraining:
    """The training as its checkpoint left it (of a cross-validation the first fold's)."""
    training = training_of(setup, spec, World(device=device))
    training.load(load_tensors(setup.storage, checkpoint, device)["training"])
    return training
