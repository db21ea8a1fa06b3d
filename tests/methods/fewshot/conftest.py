"""Small encoders, data and episodes for the few-shot tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batch import Batch, Episodes, EpisodeShape, RandomStream, Step
from methods.contracts import Context, EpisodicLearner, Method
from methods.data.records import ArrayImages, TrainData
from methods.parts.encoders import Encoder, EncoderSpec
from methods.world import World
from search_spaces.domains import build


class TinyEncoder(Encoder):
    """One convolution with batch normalisation; smooth, so that second derivatives do not vanish."""

    layers = ("conv",)

    def __init__(self, channels: int, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.conv = nn.Conv2d(channels, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = images if images.is_floating_point() else images.float() / 255
        return {"conv": torch.tanh(self.norm(self.conv(x.to(self.conv.weight.dtype))))}

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)["conv"].mean(dim=(2, 3))


def striped(classes: int, each: int, side: int = 8, noise: int = 20) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """uint8 images [N, side, side, 1] of which each class is its own pattern with noise, and their labels."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(40, 216, size=(classes, side, side, 1))
    label = np.repeat(np.arange(classes), each)
    images = patterns[label] + rng.integers(-noise, noise + 1, size=(len(label), side, side, 1))
    return images.clip(0, 255).astype(np.uint8), label.astype(np.int64)


@pytest.fixture
def data() -> TrainData:
    images, label = striped(classes=8, each=6)
    return TrainData(ArrayImages(images), label, classes=8, mean=(0.5,), std=(0.25,), flip=False)


@pytest.fixture
def make(data: TrainData) -> Callable[..., Any]:
    """make(METHOD, world=..., seed=..., **knobs): a learner on the tiny encoder, parameters a function of the seed."""

    def learner(method: Method, world: World | None = None, seed: int = 0, **knobs: object) -> EpisodicLearner:
        torch.manual_seed(seed)
        context = Context(
            data, EncoderSpec(), world or World(), seed, lambda spec, shape, mean, std, width=1.0: TinyEncoder(shape[0])
        )
        config = build(method.config, knobs)
        return method.plan(config)[0].learner(config, context).train()  # type: ignore[return-value]

    return learner


@pytest.fixture
def episodes(data: TrainData) -> Callable[..., Episodes]:
    """episodes(shape, rows, seed): tasks of the data, this worker's rows of the meta-batch."""

    def draw(shape: EpisodeShape, rows: slice | None = None, seed: int = 0) -> Episodes:
        rng = np.random.default_rng(seed)
        rows = rows or slice(0, shape.tasks)
        support, query = [], []
        for _ in range(shape.tasks):
            for name in rng.permutation(data.classes)[: shape.ways]:
                members = rng.permutation(np.flatnonzero(data.label == name))
                support.append(members[: shape.shots])
                query.append(members[shape.shots : shape.shots + shape.queries])

        def images(members: list[Any]) -> Tensor:
            index = torch.from_numpy(np.concatenate(members))
            return data.images.take(index).unflatten(0, (shape.tasks, -1))[rows]

        n = rows.stop - rows.start
        label = torch.arange(shape.ways)
        return Episodes(
            images(support),
            label.repeat_interleave(shape.shots).expand(n, -1),
            images(query),
            label.repeat_interleave(shape.queries).expand(n, -1),
            shape,
            RandomStream(7 + seed, shape.tasks, rows, torch.device("cpu")),
        )

    return draw


@pytest.fixture
def step(data: TrainData, episodes: Callable[..., Episodes]) -> Callable[..., Step]:
    """step(learner, number, world): what the loop would hand the learner."""

    def next_step(learner: EpisodicLearner, number: int = 0, world: World | None = None) -> Step:
        world, batch_spec = world or World(), learner.batch_spec()
        rows = world.rows(batch_spec.episodes.tasks) if batch_spec.episodes else slice(0, 0)
        labelled = None
        if batch_spec.labelled:
            mine = world.rows(batch_spec.labelled)
            index = torch.from_numpy(np.random.default_rng(number).integers(0, len(data), batch_spec.labelled))[mine]
            labelled = Batch(
                index,
                data.images.take(index),
                RandomStream(11 + number, batch_spec.labelled, mine, torch.device("cpu")),
                torch.from_numpy(data.label)[index],
            )
        return Step(
            number,
            0.5,
            world,
            labelled=labelled,
            episodes=episodes(batch_spec.episodes, rows, number) if batch_spec.episodes else None,
        )

    return next_step
