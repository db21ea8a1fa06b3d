"""The one training loop. It owns optimizer, schedule, precision, memory format, gradient averaging, seeds and state.

Everything a step sees is a fixed function of (seed, stage, step), so a training that stops and resumes, runs in a used
process, or is divided over workers gives what one uninterrupted worker gives (up to rounding of the collectives).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from methods.batch import Step, seed_of
from methods.contracts import Context, Learner, Method, Stage, TrainingError
from methods.data.records import IntArray, TrainData
from methods.encoder import BuildEncoder
from methods.health import PseudoLabelCount, model_signals, sample
from methods.parts.augment import Augment, augmentation
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.training import clock
from methods.training.clock import Clock, EpochClock, Fidelity, Place, SecondsClock
from methods.training.feeding import Feeder
from methods.training.optimisation import Optimisation
from methods.world import World, synchronise_batchnorm

Precision = Literal["auto", "fp32", "bf16"]

EPOCH_IMAGES = 10_240
"""The least number of training images drawn in an epoch, so that small data sets still train for a useful time."""

FINITE_EVERY = 50
"""Steps between looks at the loss for NaN: each look waits for the device."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and on what a configuration is trained. Its length is given in epochs or in seconds, never in both.

    Attributes:
        epochs: the study's top rung; schedules run to it whatever rung is reached. None where ``seconds`` say it.
        encoder: which encoder, and its starting weights.
        seed: of everything random in the training.
        epoch_images: training images drawn in an epoch; None for max(pool size, 10,240).
        precision: ``auto`` takes bf16 autocast where the device computes in it, else fp32.
        seconds: of training, of which each stage has its share; schedules follow the seconds that have passed.
    Raises:
        TrainingError: not exactly one of epochs and seconds is given, or it is not above 0.
    """

    epochs: int | None
    encoder: EncoderSpec
    seed: int = 0
    epoch_images: int | None = None
    precision: Precision = "auto"
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [amount for amount in (self.epochs, self.seconds) if amount is not None]
        if len(given) != 1 or given[0] <= 0:
            raise TrainingError(
                f"a training is given either epochs or seconds, above 0, got epochs={self.epochs} and seconds={self.seconds}"
            )

    @property
    def top(self) -> Fidelity:
        """Where the training ends."""
        if self.seconds is not None:
            return Fidelity("seconds", self.seconds)
        assert self.epochs is not None
        return Fidelity("epochs", self.epochs)


@dataclass(frozen=True)
class EpochReport:
    """One epoch's outcome.

    Attributes:
        epoch: epochs done, counted from 1; in a training in seconds the images drawn in epochs, rounded to six digits.
        done: how far the training is.
        stage: name of the stage that the epoch ended in.
        parts: mean over the epoch of the loss (``loss``) and its parts, and the health signals at its end (see
            ``methods.health``; those of embeddings and teachers on the first worker only).
        seconds: spent in the loop, health signals included.
        images: training images drawn, all workers together.
        finite: False as soon as the loss was not finite; the training is over then.
        pseudo_labels: how many used pseudo-labels each class got in the epoch; empty where the method gives none.
        steps: done in the stage so far.
    """

    epoch: Any  # an int, or a float in a training in seconds
    done: Fidelity
    stage: str
    parts: Mapping[str, float]
    seconds: float
    images: int
    finite: bool
    pseudo_labels: tuple[int, ...] = ()
    steps: int = 0


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic of its own; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


class Training:
    """One configuration of one method in training. Trained epoch by epoch; its state can be saved and loaded between epochs.

    In a training in seconds an epoch is a reporting interval only: as many images as an epoch has.

    Args:
        method, config: what is trained.
        data: all that the method may see.
        settings: for how long and on what.
        world: the workers; None for one on the CPU.
        build: what builds encoders.
        recipes: what makes augmentations.
        truth: int64 [N], labels that the method may not see, -1 elsewhere: its pseudo-labels are checked against them, and
            no learner can reach them.
    Attributes:
        stages, stage_number: the method's stages, and which of them it is in.
        steps_done: in that stage.
        learner: of that stage, in training.
        optimisation: of that learner.
        finite: False after a loss that was not finite.
    Raises:
        TrainingError: the data does not allow this method or these settings.
    """

    def __init__(
        self,
        method: Method,
        config: Any,
        data: TrainData,
        settings: TrainSettings,
        world: World | None = None,
        truth: IntArray | None = None,
        build: BuildEncoder = build_encoder,
        recipes: Callable[..., Augment] = augmentation,
    ) -> None:
        self.method, self.config, self.data, self.settings = method, config, data, settings
        self.world = world or World()
        self._build_encoder, self._recipes = build, recipes
        self.stages: tuple[Stage, ...] = method.plan(config)
        shares = sum(stage.share for stage in self.stages)
        assert abs(shares - 1) < 1e-6, f"the shares of {method.name}'s stages sum to {shares}"
        each = [stage.share for stage in self.stages]
        if settings.seconds is not None:
            self._clock: Clock = SecondsClock(each, settings.seconds, self.images_per_epoch, self.world)
        else:
            assert settings.epochs is not None
            self._clock = EpochClock(each, settings.epochs, self.images_per_epoch)
        self.finite = True
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(self.world.device))
        self._dtype = torch.bfloat16 if bf16 else None
        self._pseudo_labels = PseudoLabelCount(data.classes, truth, self.world)
        self._sample: Tensor | None = None
        self._build(0, None)

    @property
    def images_per_epoch(self) -> int:
        return self.settings.epoch_images or max(len(self.data), EPOCH_IMAGES)

    @property
    def uses_labels(self) -> bool:
        """Whether this training learns from labels."""
        return self.method.reads_labels(self.data)

    @property
    def stage(self) -> Stage:
        return self.stages[self.stage_number]

    @property
    def done(self) -> Fidelity:
        """How far it is, in the settings' unit; of seconds those spent training count, and not its reports."""
        return self._clock.done

    @property
    def epoch(self) -> Any:
        """Epochs done: an int, or a float in a training in seconds."""
        return self._clock.epoch

    def enter(self, stage: int) -> None:
        """Enters a later stage now, from the present learner."""
        self._build(stage, self.learner)

    def _build(self, number: int, previous: Learner | None) -> None:
        """Builds the learner of stage ``number`` from its own seed, on the world's device."""
        seed = seed_of(self.settings.seed, self.method.name, number)
        torch.manual_seed(seed_of(seed, "parameters"))
        context = Context(self.data, self.settings.encoder, self.world, seed, self._build_encoder, previous, self._recipes)
        learner = self.stages[number].learner(self.config, context)
        learner = learner.to(device=self.world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise_batchnorm(learner, self.world)
        self.stage_number, self.steps_done, self.learner = number, 0, learner.train()
        self._feeder = Feeder(self.data, learner.batch_spec(), seed, self.world)
        self.optimisation = Optimisation(learner)
        self._seed = seed

    def _place(self) -> Place:
        return Place(self.stage_number, self.steps_done, self._feeder.batch_spec.images)

    def stage_steps(self) -> int:
        """Steps of the current stage at the top, to which its schedules run; known in a training in epochs only."""
        assert isinstance(self._clock, EpochClock), "how many steps fit in a training in seconds shows at its end"
        return self._clock.stage_steps(self._place())

    def step_at(self, number: int, progress: float) -> Step:
        """What step ``number`` of the current stage is, or would be, handed; it depends on neither the time nor other steps."""
        return self._feeder.step(number, progress)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of this training."""
        with torch.autocast(self.world.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            yield

    def one_step(self) -> Mapping[str, Tensor]:
        """One step of the current stage, which it does not leave: the loss (``loss``) and its parts, detached scalars."""
        number, progress = self.steps_done, self._clock.progress(self._place())
        step = self.step_at(number, progress)
        # For randomness inside torch's own layers (dropout); methods draw from the batch.
        torch.manual_seed(seed_of(self._seed, "layers", number))
        with self.autocast():
            loss = self.learner.loss(step)
        if loss.pseudo_labels is not None:
            self._pseudo_labels.add(loss.pseudo_labels)
        loss.total.backward()
        self.optimisation.step(progress, self.world)
        with torch.no_grad(), self.autocast():
            self.learner.after_step(step)
        self.steps_done += 1
        self._clock.count(self._feeder.batch_spec.images)
        return {"loss": loss.total.detach(), **loss.parts}

    def train_epoch(self) -> EpochReport:
        """Trains to the end of the next epoch, across stages where one ends. Stops early where the loss is not finite."""
        return self.train()

    def train(self, until: float | None = None) -> EpochReport:
        """Trains to the end of the next epoch or to ``until``, in the settings' unit, whichever comes first.

        In seconds it ends with the first step that does so. Stops early where the loss is not finite.

        Args:
            until: above what is done and at most the top; None for the top.
        Raises:
            TrainingError: ``until`` lies outside of that, or inside an epoch of a training in epochs.
        """
        assert self.finite, "a training that diverged is over"
        started = clock.now()
        self._clock.start(until)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        images = 0
        self.learner.train()
        self._pseudo_labels.restart()
        while self.finite:
            place = self._place()
            self._clock.look(place)
            if self._clock.over(place):
                if not self._clock.goes_on(place):
                    break
                self.enter(self.stage_number + 1)
                continue
            parts = self.one_step()
            images += place.images
            for name, value in parts.items():
                sums[name] = sums[name] + value.float() if name in sums else value.float()
                counts[name] = counts.get(name, 0) + 1
            if self.steps_done % FINITE_EVERY == 0:
                self.finite = self._all_finite(sums)
        self.finite = self.finite and self._all_finite(sums)
        self._clock.stop()
        means = {name: float(self.world.mean(total / counts[name])) for name, total in sums.items()}
        signals, given = self._pseudo_labels.told()
        signals |= self._model_signals()
        return EpochReport(
            epoch=self.epoch,
            done=self.done,
            stage=self.stage.name,
            parts=means | signals,
            seconds=clock.now() - started,
            images=images,
            finite=self.finite,
            pseudo_labels=given,
            steps=self.steps_done,
        )

    def _model_signals(self) -> dict[str, float]:
        """Health as the weights tell it, on the first worker; nothing of a training that diverged."""
        if self.world.rank or not self.finite:
            return {}
        if self._sample is None:
            self._sample = sample(self.data.images, self.learner.encoder())
        return model_signals(self.learner, self._sample, self.world.device)

    def _all_finite(self, sums: Mapping[str, Tensor]) -> bool:
        return "loss" not in sums or bool(torch.isfinite(self.world.mean(sums["loss"])))

    def seconds_per_epoch(self, steps: int = 3) -> float:
        """The mean over all epochs, from ``steps`` steps of every stage; the training is spoilt and must be thrown away."""
        assert self.settings.epochs is not None, "a training in seconds is told how long it takes"
        device = self.world.device
        once = per_image = 0.0  # Seconds of entering the stages, labelling the pool and the like, and for each image drawn.
        for number, stage in enumerate(self.stages):
            started = clock.now(device)
            if number:
                self.enter(number)
            self.one_step()
            middle = clock.now(device)
            for k in range(steps):
                # Over the whole stage: what a step costs may grow, as where one layer after another is unfrozen.
                self.steps_done = max(self.steps_done, int((k + 0.5) / steps * self.stage_steps()))
                self.one_step()
            each = (clock.now(device) - middle) / steps
            if number:  # The very first step warms the process up, which is no work of the method's.
                once += max(middle - started - each, 0.0)
            per_image += stage.share * each / self._feeder.batch_spec.images
        return once / self.settings.epochs + per_image * self.images_per_epoch

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: tensors, numbers and strings only, so that it loads without unpickling code."""
        return {
            "method": self.method.name,
            **self._clock.state(),
            "stage": self.stage_number,
            "step": self.steps_done,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimisation.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``. Learners of earlier stages are built untrained: what a later one keeps is in its state.

        Raises:
            TrainingError: the state is another method's, or of a training in the other unit.
        """
        if state["method"] != self.method.name:
            raise TrainingError(f"the checkpoint must be of method {self.method.name}, got {state['method']}")
        self._clock.load(state)
        for number in range(self.stage_number + 1, state["stage"] + 1):
            self.enter(number)
        self.learner.load_state_dict(state["learner"])
        self.optimisation.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["step"]

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Goes on from another configuration's ``state``: its weights and the optimizer's moments, at the same fidelity.

        The optimizer keeps this configuration's settings, and steps are counted by its own batch.

        Raises:
            TrainingError: as for ``load``, or where this configuration's network has other parameters.
        """
        own = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer_of(state["stage"]).param_groups]
        try:
            self.load(state)
        except TrainingError:
            raise
        except (RuntimeError, ValueError) as error:
            what = str(error).splitlines()[0]
            raise TrainingError(f"a fork must keep the network of the trial that it starts from, but {what}") from None
        for group, settings in zip(self.optimisation.optimizer.param_groups, own, strict=True):
            group.update(settings)
        self.steps_done = self._clock.steps_at_done(self._place())

    def _optimizer_of(self, stage: int) -> torch.optim.Optimizer:
        for number in range(self.stage_number + 1, stage + 1):
            self.enter(number)
        return self.optimisation.optimizer
