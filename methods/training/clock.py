"""How far a training is, what its schedules see, and when its stages end: counted in epochs, or by the seconds spent."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from methods.contracts import TrainingError
from methods.world import World

Unit = Literal["epochs", "seconds", "labels"]

AGREE_EVERY = 10
"""Steps between agreements of several GPU workers on the time: each makes the host wait for the device."""


@dataclass(frozen=True)
class Fidelity:
    """How far a trial has come. An amount that is an int stays one."""

    unit: Unit
    amount: float

    def __str__(self) -> str:
        figure = np.format_float_positional(self.amount, precision=3, trim="-")
        if self.unit == "seconds":
            return f"{figure} s"
        return f"{figure} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"


def now(device: torch.device | None = None) -> float:
    """Seconds on this process's clock; with a device, once that has done what it was told."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Place:
    """Where a training stands.

    Attributes:
        stage: number of the stage.
        steps: done in the stage.
        images: drawn in each of its steps, all workers together.
    """

    stage: int
    steps: int
    images: int


class Clock(ABC):
    """A training's measure. The loop calls ``start``; before every step ``look``; after it ``count``; and ``stop`` at the end.

    Args:
        shares: of the stages; they sum to 1.
        top: the amount to which the training and its schedules run.
        images_per_epoch: drawn in an epoch.
    """

    unit: ClassVar[Unit]

    def __init__(self, shares: Sequence[float], top: float, images_per_epoch: int) -> None:
        self.shares, self.images_per_epoch = tuple(shares), images_per_epoch
        self.top = Fidelity(self.unit, top)

    @property
    @abstractmethod
    def done(self) -> Fidelity:
        """How far the training is."""

    @property
    @abstractmethod
    def epoch(self) -> float:
        """Epochs done: an int where the training is counted in epochs."""

    def start(self, until: float | None) -> None:
        """A stretch of training begins, which ends with the next epoch or at ``until``, the top where None."""
        assert self.done.amount < self.top.amount, "nothing left to train"
        target = self.top.amount if until is None else until
        if not self.done.amount < target <= self.top.amount:
            raise TrainingError(f"a training at {self.done} of {self.top} can go on to between the two, got until={target}")
        self._start(target)

    @abstractmethod
    def _start(self, until: float) -> None: ...

    @abstractmethod
    def look(self, place: Place) -> None:
        """Reads the time; every worker of the training does so at the same place."""

    @abstractmethod
    def count(self, images: int) -> None:
        """A step has drawn ``images`` images."""

    @abstractmethod
    def stop(self) -> None:
        """The stretch is over and the device idle."""

    @abstractmethod
    def progress(self, place: Place) -> float:
        """Share of the stage done, in [0, 1)."""

    def steps_at_done(self, place: Place) -> int:
        """Steps that the stage has done when the training is as far as it is."""
        return place.steps

    @abstractmethod
    def over(self, place: Place) -> bool:
        """Whether this stage has nothing left to do in this stretch."""

    @abstractmethod
    def goes_on(self, place: Place) -> bool:
        """Whether, this stage being over, the stretch goes on in the next one."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Numbers from which ``load`` goes on."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None: ...


class EpochClock(Clock):
    """Counts epochs; a stage is a number of steps that is known beforehand."""

    unit = "epochs"

    def __init__(self, shares: Sequence[float], top: int, images_per_epoch: int) -> None:
        super().__init__(shares, top, images_per_epoch)
        self._epoch = 0

    @property
    def done(self) -> Fidelity:
        return Fidelity("epochs", self._epoch)

    @property
    def epoch(self) -> int:
        return self._epoch

    def _start(self, until: float) -> None:
        if until != int(until):
            raise TrainingError(f"a training in epochs goes on to a whole number of them, got until={until}")
        self._epoch += 1

    def look(self, place: Place) -> None:
        """Steps tell the time."""

    def count(self, images: int) -> None:
        """Steps are counted by the loop."""

    def stop(self) -> None:
        """Nothing runs on."""

    def stage_steps(self, place: Place) -> int:
        """Steps of the stage at the top, to which its schedules run."""
        images = self.shares[place.stage] * self.top.amount * self.images_per_epoch
        return max(1, round(images / place.images))

    def _begins(self, stage: int) -> float:
        """The epoch at which a stage begins, counted from 0 and perhaps inside one."""
        return sum(self.shares[:stage]) * self.top.amount

    def progress(self, place: Place) -> float:
        return place.steps / self.stage_steps(place)

    def steps_at_done(self, place: Place) -> int:
        length = self.shares[place.stage] * self.top.amount
        passed = min(max((self._epoch - self._begins(place.stage)) / length, 0.0), 1.0)
        return round(self.stage_steps(place) * passed)

    def over(self, place: Place) -> bool:
        return place.steps >= self.steps_at_done(place)

    def goes_on(self, place: Place) -> bool:
        """A stage that ends with the epoch keeps its learner, so that the rung scores what has been trained."""
        last = place.stage == len(self.shares) - 1 or self._begins(place.stage + 1) >= self._epoch - 1e-6
        return not last and place.steps >= self.stage_steps(place)

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch}

    def load(self, state: Mapping[str, Any]) -> None:
        if "epoch" not in state:
            raise TrainingError("the checkpoint must be of a training in epochs, got one in seconds")
        self._epoch = state["epoch"]


class SecondsClock(Clock):
    """Counts the seconds spent training; how many steps fit in cannot be told beforehand, since speed varies.

    A stage ends at the first look after its share of the seconds, and does at least one step. Its schedule runs from its
    first step to that end. Time passes between ``start`` and ``stop`` only; the first worker's clock is everybody's, so that
    all end at the same step and see the same progress.
    """

    unit = "seconds"

    def __init__(self, shares: Sequence[float], top: float, images_per_epoch: int, world: World) -> None:
        super().__init__(shares, top, images_per_epoch)
        self.world = world
        # The last stage ends at the top itself, whatever the shares' sum was rounded to.
        self._ends = [*(share * top for share in accumulate(self.shares[:-1])), top]
        self._seconds, self._images = 0.0, 0
        self._stage_began = 0.0
        self._until, self._report_at = top, images_per_epoch
        self._started_at = self._seconds_before = 0.0

    @property
    def done(self) -> Fidelity:
        return Fidelity("seconds", self._seconds)

    @property
    def epoch(self) -> float:
        return round(self._images / self.images_per_epoch, 6)

    def _start(self, until: float) -> None:
        self._until = until
        self._report_at = (self._images // self.images_per_epoch + 1) * self.images_per_epoch
        self._started_at, self._seconds_before = now(), self._seconds

    def look(self, place: Place) -> None:
        # On a GPU the host runs ahead of the device and this reads a little early, but no further than the loop's looks at
        # the loss, which wait for the device. A wait at every step would cost more than such a lead.
        if self.world.device.type == "cpu" or self.world.size == 1 or place.steps % AGREE_EVERY == 0:
            self._read()
        if not place.steps:
            self._stage_began = self._seconds

    def _read(self) -> None:
        seconds = self._seconds_before + now() - self._started_at
        if self.world.size > 1:
            own = torch.tensor([seconds], dtype=torch.float64, device=self.world.device)
            seconds = float(self.world.gather(own)[0])
        self._seconds = seconds

    def count(self, images: int) -> None:
        self._images += images

    def stop(self) -> None:
        self._read()

    def progress(self, place: Place) -> float:
        length = self._ends[place.stage] - self._stage_began
        if not place.steps or length <= 0:
            return 0.0
        return min((self._seconds - self._stage_began) / length, 1.0)

    def over(self, place: Place) -> bool:
        due = min(self._ends[place.stage], self._until)
        return place.steps > 0 and (self._seconds >= due or self._images >= self._report_at)

    def goes_on(self, place: Place) -> bool:
        """At the top the stages that are left do their one step, however late it has become."""
        if place.stage == len(self.shares) - 1 or self._seconds < self._ends[place.stage]:
            return False
        stretch_over = self._seconds >= self._until or self._images >= self._report_at
        return not stretch_over or self._seconds >= self.top.amount

    def state(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "images": self._images, "stage_began": self._stage_began}

    def load(self, state: Mapping[str, Any]) -> None:
        if "seconds" not in state:
            raise TrainingError("the checkpoint must be of a training in seconds, got one in epochs")
        self._seconds, self._images, self._stage_began = state["seconds"], state["images"], state["stage_began"]
