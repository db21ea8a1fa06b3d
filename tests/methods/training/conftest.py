"""Toy learners that record what they are shown, and trainings of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from methods.batch import BatchSpec, EpisodeShape, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, SharedConfig, Stage
from methods.data.records import Split
from methods.parts.encoders import Encoder, EncoderSpec
from methods.training import Training, TrainSettings
from methods.world import World
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SharedConfig):
    batch_size: int = knob(16, Int(2, 64), doc="images per step", source="test")
    labelled: int = knob(0, None, legal=Int(0, 64), doc="labelled images per step", source="test")
    tasks: int = knob(0, None, legal=Int(0, 64), doc="episodes per step", source="test")
    poison: int = knob(-1, None, legal=Int(-1, 1000), doc="step at which the loss is NaN", source="test")
    kind: str = knob("adamw", Choice(("adamw", "sgd")), doc="optimizer", source="test")
    schedule: str = knob("cosine", Choice(("cosine", "constant")), doc="schedule", source="test")
    share: float = knob(0.5, Float(0.01, 0.99), doc="share of the first of two stages", source="test")


class Pixels(Encoder):
    """A linear map of the pixels."""

    layers = ()

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.dim = 4
        self.map = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.float() / 255).mean((2, 3))


class Toy(Learner):
    """Pulls embeddings towards random targets; keeps a slow copy and a count in buffers, and a log for the test."""

    slow: Tensor
    log: ClassVar[list[tuple[str, Step]]] = []
    stage: ClassVar[str] = "train"
    took: ClassVar[Callable[[str], None]] = staticmethod(lambda stage: None)
    """Called with the stage's name as a step is taken."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.f = Pixels(context.shape)
        self.register_buffer("slow", torch.zeros(4))

    def batch_spec(self) -> BatchSpec:
        c = self.config
        episodes = EpisodeShape(c.tasks, 2, 1, 2) if c.tasks else None
        return BatchSpec(pool=c.batch_size, labelled=c.labelled, episodes=episodes)

    def loss(self, step: Step) -> Loss:
        self.log.append((self.stage, step))
        self.took(self.stage)
        batch = step.from_pool()
        z = self.f(batch.images)
        total = (z - batch.stream.normal(4)).square().mean() + (z - self.slow).square().mean()
        if step.number == self.config.poison:
            total = total * float("nan")
        return Loss(total, {"size": z.detach().norm(), "autocast": torch.tensor(float(torch.is_autocast_enabled("cpu")))})

    def after_step(self, step: Step) -> None:
        self.slow.lerp_(self.f.map[0].bias, 0.1)  # type: ignore[arg-type]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return Optimizer(self.config.kind, lr=1e-2, weight_decay=0.1, schedule=self.config.schedule, clip=1.0)  # type: ignore[arg-type]


class Second(Toy):
    stage: ClassVar[str] = "second"

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        assert context.previous is not None
        self.f.load_state_dict(context.previous.encoder().state_dict())


class Third(Second):
    stage: ClassVar[str] = "third"


def one_stage() -> Method:
    return Method("toy", "selfsup", "none", "a toy", Config, learner=Toy)


def two_stages() -> Method:
    def plan(config: Config) -> tuple[Stage, ...]:
        return Stage("train", config.share, Toy), Stage("second", 1 - config.share, Second)

    return Method("toy two", "selfsup", "none", "a toy", Config, stages=plan)


def three_stages() -> Method:
    """Stages with a quarter, a half and a quarter of the training."""

    def plan(config: Config) -> tuple[Stage, ...]:
        return Stage("train", 0.25, Toy), Stage("second", 0.5, Second), Stage("third", 0.25, Third)

    return Method("toy three", "selfsup", "none", "a toy", Config, stages=plan)


def start(
    split: Split,
    method: Method | None = None,
    config: Config | None = None,
    epochs: int = 2,
    epoch_images: int | None = 160,
    seed: int = 0,
    world: World | None = None,
    seconds: float | None = None,
) -> Training:
    settings = TrainSettings(None if seconds else epochs, EncoderSpec(), seed, epoch_images, "auto", seconds)
    return Training(method or one_stage(), config or Config(), split.train, settings, world)


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    Toy.log.clear()


def steps_of(name: str = "train") -> list[Step]:
    return [step for stage, step in Toy.log if stage == name]


def through_disk(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state as a file would give it back, loaded without unpickling code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def assert_equal_state(a: Training, b: Training) -> None:
    for left, right in ((a.state(), b.state()),):
        assert left.keys() == right.keys()
        for name, value in left["learner"].items():
            assert torch.equal(value, right["learner"][name]), name
        for name, entry in left["optimizer"]["state"].items():
            for key, value in entry.items():
                assert torch.equal(value, right["optimizer"]["state"][name][key]), (name, key)
        numbers = left.keys() - {"learner", "optimizer"}
        assert {name: left[name] for name in numbers} == {name: right[name] for name in numbers}


@pytest.fixture
def toys() -> SimpleNamespace:
    """The toys of this file by their names."""
    return SimpleNamespace(
        Config=Config,
        Toy=Toy,
        Second=Second,
        one_stage=one_stage,
        two_stages=two_stages,
        three_stages=three_stages,
        start=start,
        steps_of=steps_of,
        through_disk=through_disk,
        assert_equal_state=assert_equal_state,
    )
