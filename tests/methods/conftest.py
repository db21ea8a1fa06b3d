"""Methods that learn from labels, one step at a time: a learner on tiny data whose views are recorded, and plain loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.batch import RandomStream, Step
from methods.contracts import Context, Learner, Loss
from methods.data.records import Split, TrainData
from methods.parts.augment import Augment, to_float
from methods.parts.encoders import Encoder, EncoderSpec, build_encoder
from methods.training import Feeder
from methods.world import World
from search_spaces.domains import build


class FlatEncoder(Encoder):
    """Pixels to tanh of a linear map: no statistics of the batch, so that rows can be computed one by one."""

    layers = ()
    name = "flat"

    def __init__(self, shape: tuple[int, int, int], width: float = 1.0) -> None:
        super().__init__()
        self.shape, self.dim = shape, int(8 * width)
        self.map = nn.Linear(math.prod(shape), self.dim)

    def forward(self, images: Tensor) -> Tensor:
        x = images if images.is_floating_point() else images.float() / 255
        return torch.tanh(3 * self.map(x.flatten(1)))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}


@dataclass
class Spy:
    """An augmentation that remembers its views."""

    name: str
    inner: Augment
    views: list[tuple[str, Tensor]]

    def __call__(self, images: Tensor, draws: RandomStream) -> Tensor:
        view = self.inner(images, draws)
        self.views.append((self.name, view))
        return view


@dataclass
class Harness:
    """A learner, the data it was built from, and the steps it is shown."""

    learner: Any
    data: TrainData
    views: list[tuple[str, Tensor]] = field(default_factory=list)

    def step(self, number: int = 0, progress: float = 0.5) -> Step:
        return Feeder(self.data, self.learner.batch_spec(), 0, World()).step(number, progress)

    def loss(self, step: Step) -> Loss:
        self.views.clear()
        loss: Loss = self.learner.loss(step)
        return loss

    def of(self, name: str) -> list[Tensor]:
        """The views that the augmentation ``learner.<name>`` gave in the last step, in order."""
        return [view for own, view in self.views if own == name]


def rows(model: nn.Module, images: Tensor) -> list[list[float]]:
    """What a model gives in float64, one image at a time."""
    wide = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return [wide(to_float(image[None]).double())[0].double().tolist() for image in images]


def softmax(row: Sequence[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(row: Sequence[float], target: int | Sequence[float]) -> float:
    log_p = [math.log(p) for p in softmax(row)]
    return -log_p[target] if isinstance(target, int) else -sum(t * lp for t, lp in zip(target, log_p, strict=True))


def entropy(p: Sequence[float]) -> float:
    return -sum(value * math.log(value) for value in p if value > 0)


def squared(p: Sequence[float], q: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture
def loops() -> SimpleNamespace:
    """Formulas as plain Python over float64."""
    return SimpleNamespace(rows=rows, softmax=softmax, cross_entropy=cross_entropy, entropy=entropy, squared=squared, mean=mean)


@pytest.fixture
def harness(make_split: Callable[..., Split]) -> Callable[..., Harness]:
    """harness(module, stage=0, previous=None, flat=True, size=8, **knobs): a learner with a flat encoder and recorded views."""

    def build_one(
        module: ModuleType, stage: int = 0, previous: Learner | None = None, flat: bool = True, size: int = 8, **knobs: object
    ) -> Harness:
        data = make_split(4, 8, 4, size).train

        def flat_encoder(spec: EncoderSpec, shape: Any, mean: Any, std: Any, width: float = 1.0) -> Encoder:
            return FlatEncoder(shape, width)

        config = build(module.METHOD.config, {"batch_size": 4, **knobs})
        context = Context(data, EncoderSpec("resnet_small"), World(), 0, flat_encoder if flat else build_encoder, previous)
        learner = module.METHOD.plan(config)[stage].learner(config, context).train()
        made = Harness(learner, data)
        for name, value in list(vars(learner).items()):
            if isinstance(value, Augment):
                setattr(learner, name, Spy(name, value, made.views))
        return made

    return build_one
