"""The one training loop. It owns optimizer, schedule, precision, memory format, gradient averaging, seeds and state.

Everything a step sees is a fixed function of (seed, stage, step), so a training that stops and resumes, runs in a used
process, or is divided over workers gives what one uninterrupted worker gives (up to rounding of the collectives).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Episodes, EpisodeShape, RandomStream, Step, seed_of
from methods.contracts import Context, Learner, Method, Optimizer, Stage, TrainingError
from methods.data.episodic import EpisodeSampler
from methods.data.records import IntArray, TrainData
from methods.health import PseudoLabelCount, model_signals, sample
from methods.parts.encoders import EncoderSpec
from methods.world import World, synchronise_batchnorm

Precision = Literal["auto", "fp32", "bf16"]

EPOCH_IMAGES = 10_240
"""The least number of training images drawn in an epoch, so that small data sets still train for a useful time."""

FINITE_EVERY = 50
"""Steps between looks at the loss for NaN: each look waits for the device."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and on what a configuration is trained.

    Attributes:
        epochs: the study's top rung; schedules run to it whatever rung is reached.
        encoder: which encoder, and its starting weights.
        seed: of everything random in the training.
        epoch_images: training images drawn in an epoch; None for max(pool size, 10,240).
        precision: ``auto`` takes bf16 autocast where the device computes in it, else fp32.
    """

    epochs: int
    encoder: EncoderSpec
    seed: int = 0
    epoch_images: int | None = None
    precision: Precision = "auto"


@dataclass(frozen=True)
class EpochReport:
    """One epoch's outcome.

    Attributes:
        epoch: epochs done, counted from 1.
        stage: name of the stage that the epoch ended in.
        parts: mean over the epoch of the loss (``loss``) and its parts, and the health signals at its end (see
            ``methods.health``; those of embeddings and teachers on the first worker only).
        seconds: spent in the loop, health signals included.
        images: training images drawn, all workers together.
        finite: False as soon as the loss was not finite; the training is over then.
        pseudo_labels: how many used pseudo-labels each class got in the epoch; empty where the method gives none.
        steps: done in the stage so far.
    """

    epoch: int
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


class _Stream:
    """An endless shuffled pass over ``members``: position p of the stream is a fixed function of (seed, p)."""

    def __init__(self, members: IntArray, seed: int) -> None:
        self.members, self.seed = members, seed
        self._pass, self._order = -1, members

    def _pass_order(self, number: int) -> IntArray:
        if number != self._pass:
            rng = np.random.default_rng(seed_of(self.seed, number))
            self._pass, self._order = number, rng.permutation(self.members)
        return self._order

    def rows(self, start: int, stop: int) -> IntArray:
        n = len(self.members)
        parts = []
        while start < stop:
            number, offset = divmod(start, n)
            take = min(stop - start, n - offset)
            parts.append(self._pass_order(number)[offset : offset + take])
            start += take
        return np.concatenate(parts)


class _Feeder:
    """Draws the batches of one stage."""

    def __init__(self, data: TrainData, batch_spec: BatchSpec, seed: int, world: World) -> None:
        self.data, self.batch_spec, self.seed, self.world = data, batch_spec, seed, world
        labelled = np.flatnonzero(data.label >= 0)
        needed = {
            "pool": batch_spec.pool,
            "labelled": batch_spec.labelled,
            "tasks": batch_spec.episodes.tasks if batch_spec.episodes else 0,
        }
        for name, size in needed.items():
            if size % world.size:
                raise TrainingError(f"the {name} batch must divide by the number of workers, got {size} over {world.size}")
        if batch_spec.labelled and not len(labelled):
            raise TrainingError("this method learns from labels, and the training part of the label budget is empty")
        if batch_spec.images == 0:
            raise TrainingError("a learner must ask for at least one image a step; its feeds are empty")
        self._pool = _Stream(np.arange(len(data)), seed_of(seed, "pool"))
        self._labelled = _Stream(labelled, seed_of(seed, "labelled"))
        self._sampler = self._episode_sampler(labelled) if batch_spec.episodes else None
        self._label = torch.from_numpy(data.label)
        self._group = None if data.group is None else torch.from_numpy(data.group)
        self._tokens = None if data.tokens is None else torch.from_numpy(data.tokens)
        targets = data.target_labels()
        self._targets = None if targets is None else torch.from_numpy(targets)

    def _episode_sampler(self, labelled: IntArray) -> EpisodeSampler:
        assert self.batch_spec.episodes is not None
        group = None if self.data.group is None else self.data.group[labelled]
        self._episode_members = torch.from_numpy(labelled)
        return EpisodeSampler(self.data.label[labelled], group, self.batch_spec.episodes, seed_of(self.seed, "episodes"))

    def _to_device(self, x: Tensor) -> Tensor:
        device = self.world.device
        if device.type == "cuda":
            return x.pin_memory().to(device, non_blocking=True)
        return x.to(device)

    def _batch(self, stream: _Stream, size: int, name: str, number: int, labels: bool) -> Batch:
        rows = self.world.rows(size)
        index = torch.from_numpy(stream.rows(number * size + rows.start, number * size + rows.stop))
        return Batch(
            index=self._to_device(index),
            images=self._to_device(self.data.images.take(index)),
            stream=RandomStream(seed_of(self.seed, name, number), size, rows, self.world.device),
            label=self._to_device(self._label[index]) if labels else None,
            group=None if self._group is None else self._to_device(self._group[index]),
            tokens=None if self._tokens is None else self._to_device(self._tokens[index]),
            targets=self._to_device(self._targets[index]) if labels and self._targets is not None else None,
        )

    def _episodes(self, shape: EpisodeShape, number: int) -> Episodes:
        assert self._sampler is not None
        rows = self.world.rows(shape.tasks)
        support, query = self._sampler.indices(number, rows)
        stream = RandomStream(seed_of(self.seed, "episodes", number), shape.tasks, rows, self.world.device)
        return gather_episodes(self.data, self._episode_members, support, query, shape, stream, self._to_device)

    def step(self, number: int, progress: float) -> Step:
        batch_spec = self.batch_spec
        return Step(
            number=number,
            progress=progress,
            world=self.world,
            pool=self._batch(self._pool, batch_spec.pool, "pool", number, labels=False) if batch_spec.pool else None,
            labelled=self._batch(self._labelled, batch_spec.labelled, "labelled", number, labels=True)
            if batch_spec.labelled
            else None,
            episodes=self._episodes(batch_spec.episodes, number) if batch_spec.episodes else None,
        )


def gather_episodes(
    data: TrainData,
    members: Tensor,
    support: Tensor,
    query: Tensor,
    shape: EpisodeShape,
    stream: RandomStream,
    to_device: Callable[[Tensor], Tensor],
) -> Episodes:
    """Episodes from positions in ``members``: support int64 [t, N*K], query [t, N*Q]; all images in one indexing step."""
    tasks = support.shape[0]
    both = members[torch.cat([support, query], dim=1)]
    images = to_device(data.images.take(both.flatten())).unflatten(0, (tasks, -1))
    classes = torch.arange(shape.ways)
    n = support.shape[1]
    return Episodes(
        support=images[:, :n],
        support_label=to_device(classes.repeat_interleave(shape.shots).expand(tasks, -1).contiguous()),
        query=images[:, n:],
        query_label=to_device(classes.repeat_interleave(shape.queries).expand(tasks, -1).contiguous()),
        shape=shape,
        stream=stream,
    )


class _Optimization:
    """Optimizer and schedule of one stage."""

    def __init__(self, learner: Learner) -> None:
        self.spec: Optimizer = learner.optimizer()
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.spec.kind == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=self.spec.lr, betas=self.spec.betas, fused=True
            )
        else:
            momentum = self.spec.momentum
            self.optimizer = torch.optim.SGD(groups, lr=self.spec.lr, momentum=momentum, nesterov=momentum > 0, fused=True)

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` of the stage."""
        spec = self.spec
        if progress < spec.warmup:
            return spec.lr * max(progress / spec.warmup, 0.01)
        if spec.schedule == "constant":
            return spec.lr
        return spec.lr * 0.5 * (1 + float(np.cos(np.pi * (progress - spec.warmup) / (1 - spec.warmup))))

    def step(self, progress: float, world: World) -> None:
        world.average_gradients(self.parameters)
        if self.spec.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Training:
    """One configuration of one method in training. Trained epoch by epoch; its state can be saved and loaded between epochs.

    Args:
        method, config: what is trained.
        data: all that the method may see.
        settings: for how long and on what.
        world: the workers; None for one on the CPU.
        truth: int64 [N], labels that the method may not see, -1 elsewhere: its pseudo-labels are checked against them, and
            no learner can reach them.
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
    ) -> None:
        self.method, self.config, self.data, self.settings = method, config, data, settings
        self.world = world or World()
        self.stages: tuple[Stage, ...] = method.plan(config)
        shares = sum(stage.share for stage in self.stages)
        assert abs(shares - 1) < 1e-6, f"the shares of {method.name}'s stages sum to {shares}"
        self.epoch = 0
        self.finite = True
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(self.world.device))
        self._dtype = torch.bfloat16 if bf16 else None
        self._pseudo_labels = PseudoLabelCount(data.classes, truth, self.world)
        self._sample: Tensor | None = None
        self._enter(0, None)

    @property
    def images_per_epoch(self) -> int:
        return self.settings.epoch_images or max(len(self.data), EPOCH_IMAGES)

    @property
    def uses_labels(self) -> bool:
        """Whether this training learns from labels."""
        return self.method.reads_labels(self.data)

    @property
    def stage(self) -> Stage:
        return self.stages[self._stage]

    def _enter(self, number: int, previous: Learner | None) -> None:
        """Builds the learner of stage ``number`` from its own seed, on the world's device."""
        seed = seed_of(self.settings.seed, self.method.name, number)
        torch.manual_seed(seed_of(seed, "parameters"))
        context = Context(self.data, self.settings.encoder, self.world, seed, previous)
        learner = self.stages[number].learner(self.config, context)
        learner = learner.to(device=self.world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise_batchnorm(learner, self.world)
        self._stage, self._step, self.learner = number, 0, learner.train()
        self._feeder = _Feeder(self.data, learner.batch_spec(), seed, self.world)
        self._optimization = _Optimization(learner)
        self._seed = seed

    def stage_steps(self) -> int:
        """Steps of the current stage at the top rung, to which its schedules run."""
        images = self.stage.share * self.settings.epochs * self.images_per_epoch
        return max(1, round(images / self._feeder.batch_spec.images))

    def _start(self, number: int) -> float:
        """The epoch at which stage ``number`` begins, counted from 0 and perhaps inside one."""
        return sum(stage.share for stage in self.stages[:number]) * self.settings.epochs

    def _target(self, epoch: int) -> int:
        """Steps that the current stage has done when ``epoch`` epochs are done."""
        start = self._start(self._stage)
        length = self.stage.share * self.settings.epochs
        return round(self.stage_steps() * min(max((epoch - start) / length, 0.0), 1.0))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of this training."""
        with torch.autocast(self.world.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            yield

    def _one_step(self) -> Mapping[str, Tensor]:
        number, steps = self._step, self.stage_steps()
        progress = number / steps
        step = self._feeder.step(number, progress)
        # For randomness inside torch's own layers (dropout); methods draw from the batch.
        torch.manual_seed(seed_of(self._seed, "layers", number))
        with self.autocast():
            loss = self.learner.loss(step)
        if loss.pseudo_labels is not None:
            self._pseudo_labels.add(loss.pseudo_labels)
        loss.total.backward()
        self._optimization.step(progress, self.world)
        with torch.no_grad(), self.autocast():
            self.learner.after_step(step)
        self._step += 1
        return {"loss": loss.total.detach(), **loss.parts}

    def train_epoch(self) -> EpochReport:
        """Trains to the end of the next epoch, across stages where one ends. Stops early where the loss is not finite."""
        assert self.epoch < self.settings.epochs, "nothing left to train"
        assert self.finite, "a training that diverged is over"
        started = time.perf_counter()
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        images = 0
        self.learner.train()
        self._pseudo_labels.restart()
        self.epoch += 1
        while self.finite:
            if self._step >= self._target(self.epoch):
                # A stage that ends with the epoch keeps its learner, so that the rung scores what has been trained.
                last = self._stage == len(self.stages) - 1 or self._start(self._stage + 1) >= self.epoch - 1e-6
                if last or self._step < self.stage_steps():
                    break
                self._enter(self._stage + 1, self.learner)
                continue
            parts = self._one_step()
            images += self._feeder.batch_spec.images
            for name, value in parts.items():
                sums[name] = sums[name] + value.float() if name in sums else value.float()
                counts[name] = counts.get(name, 0) + 1
            if self._step % FINITE_EVERY == 0:
                self.finite = self._all_finite(sums)
        self.finite = self.finite and self._all_finite(sums)
        means = {name: float(self.world.mean(total / counts[name])) for name, total in sums.items()}
        signals, given = self._pseudo_labels.told()
        signals |= self._model_signals()
        seconds = time.perf_counter() - started
        return EpochReport(
            epoch=self.epoch,
            stage=self.stage.name,
            parts=means | signals,
            seconds=seconds,
            images=images,
            finite=self.finite,
            pseudo_labels=given,
            steps=self._step,
        )

    def _model_signals(self) -> dict[str, float]:
        """Health as the weights tell it, on the first worker; nothing of a training that diverged."""
        if self.world.rank or not self.finite:
            return {}
        if self._sample is None:
            self._sample = sample(self.data.images)
        return model_signals(self.learner, self._sample, self.world.device)

    def _all_finite(self, sums: Mapping[str, Tensor]) -> bool:
        return "loss" not in sums or bool(torch.isfinite(self.world.mean(sums["loss"])))

    def seconds_per_epoch(self, steps: int = 3) -> float:
        """The mean over all epochs, from ``steps`` steps of every stage; the training is spoilt and must be thrown away."""
        once = per_image = 0.0  # Seconds of entering the stages, labelling the pool and the like, and for each image drawn.
        for number, stage in enumerate(self.stages):
            started = self._now()
            if number:
                self._enter(number, self.learner)
            self._one_step()
            middle = self._now()
            for _ in range(steps):
                self._one_step()
            each = (self._now() - middle) / steps
            if number:  # The very first step warms the process up, which is no work of the method's.
                once += max(middle - started - each, 0.0)
            per_image += stage.share * each / self._feeder.batch_spec.images
        return once / self.settings.epochs + per_image * self.images_per_epoch

    def _now(self) -> float:
        """The time at which the device has done what it was told."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: tensors, numbers and strings only, so that it loads without unpickling code."""
        return {
            "method": self.method.name,
            "epoch": self.epoch,
            "stage": self._stage,
            "step": self._step,
            "learner": self.learner.state_dict(),
            "optimizer": self._optimization.optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``. Learners of earlier stages are built untrained: what a later one keeps is in its state."""
        if state["method"] != self.method.name:
            raise TrainingError(f"the checkpoint must be of method {self.method.name}, got {state['method']}")
        for number in range(self._stage + 1, state["stage"] + 1):
            self._enter(number, self.learner)
        self.learner.load_state_dict(state["learner"])
        self._optimization.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self._step = state["epoch"], state["step"]
