"""A user's own method in one file passes the shipped suite, and each way of breaking it fails the check that is for it."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods import BatchSpec, Context, Encoder, Learner, Loss, Method, Optimizer, SharedConfig, Stage, Step
from methods.batch import Batch
from methods.testing import CHECKS, case_of, check_method
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SharedConfig):
    """Knobs of a method of one's own."""

    shift: int = knob(2, Int(1, 4), unit="pixels", doc="how far the second view is shifted", source="this file")


class Shifted(Learner):
    """Embeds an image and itself shifted alike, and apart from where a slow centre of all embeddings is."""

    centre: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.f = context.new_encoder()
        self.head = nn.Linear(self.f.dim, 8)
        self.register_buffer("centre", torch.zeros(8))

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=self.config.batch_size)

    def embed(self, images: Tensor) -> Tensor:
        return self.head(self.f(images))

    def loss(self, step: Step) -> Loss:
        images = step.from_pool().images
        one, two = self.embed(images), self.embed(images.roll(self.config.shift, dims=3))
        alike, apart = (one - two).square().mean(), (-(one - self.centre).square()).exp().mean()
        noise = step.from_pool().stream.normal(8)
        return Loss(alike + apart + 0.1 * (one * noise).mean(), {"alike": alike.detach(), "apart": apart.detach()})

    def after_step(self, step: Step) -> None:
        self.centre.lerp_(self.head.bias, 0.5)

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", self.config.lr)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {"shifted": batch.images.roll(self.config.shift, dims=3).float() / 255}


METHOD = Method("shifted", "selfsup", "this file", "images and their shifted selves", Config, learner=Shifted)


def test_a_method_of_ones_own_conforms() -> None:
    check_method(METHOD)
    check_method(METHOD, {"shift": 4})


# Broken ones


class NotANumber(Shifted):
    def loss(self, step: Step) -> Loss:
        loss = super().loss(step)
        return dataclasses.replace(loss, total=loss.total * float("nan"))


class Attached(Shifted):
    def loss(self, step: Step) -> Loss:
        loss = super().loss(step)
        return dataclasses.replace(loss, parts={"alike": loss.total * 2})


class Detached(Shifted):
    def embed(self, images: Tensor) -> Tensor:
        return self.head(self.f(images).detach())


class Stuck(Shifted):
    """Has a teacher scored that follows nobody."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.teacher = copy.deepcopy(self.f).requires_grad_(False)

    def encoder(self) -> Encoder:
        return self.teacher


class FromTheProcess(Shifted):
    """Draws from numpy's global state."""

    def loss(self, step: Step) -> Loss:
        loss = super().loss(step)
        return dataclasses.replace(loss, total=loss.total * float(np.random.uniform(1, 2)))


class Unseeded(Shifted):
    """Its batch's random numbers are the same for every seed, and so are its images and weights."""

    def __init__(self, config: Config, context: Context) -> None:
        torch.manual_seed(0)
        super().__init__(config, context)

    def loss(self, step: Step) -> Loss:
        images = torch.full_like(step.from_pool().images, 7)
        return Loss(self.embed(images).square().mean())


class Forgetful(Shifted):
    """Counts in an attribute that no state holds."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.count = 1.0

    def loss(self, step: Step) -> Loss:
        self.count += 1
        loss = super().loss(step)
        return dataclasses.replace(loss, total=loss.total * self.count)


class Cheating(Shifted):
    """Reads the labels that its catalogue entry says it does not use."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.known = float((context.data.label >= 0).mean())

    def loss(self, step: Step) -> Loss:
        loss = super().loss(step)
        return dataclasses.replace(loss, total=loss.total * (1 + self.known))


class Asking(Shifted):
    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=self.config.batch_size, labelled=self.config.batch_size)


class Together(Encoder):
    """Centres its embeddings over whatever batch it is given."""

    layers = ()

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.dim = inner, inner.dim

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.inner.maps(images)

    def forward(self, images: Tensor) -> Tensor:
        z = self.inner(images)
        return z - z.mean(dim=0)


class Crowded(Shifted):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.f = Together(self.f)


class TooBright(Shifted):
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {"bytes": batch.images.float()}


class Loose(Shifted):
    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.weights = torch.ones(3)


@dataclass(frozen=True)
class WideConfig(SharedConfig):
    tau: float = knob(0.5, None, legal=Float(0, 1), doc="a temperature.", source="this file")


@dataclass
class LooseConfig:
    batch_size: int = knob(16, Int(2, 64), doc="images per step", source="this file")


def halves(config: Config) -> tuple[Stage, ...]:
    return (Stage("one", 0.5, Shifted), Stage("one", 0.5, Shifted))


def short(config: Config) -> tuple[Stage, ...]:
    return (Stage("one", 0.5, Shifted), Stage("two", 0.25, Shifted))


def broken(learner: type[Learner]) -> Method:
    return dataclasses.replace(METHOD, learner=learner)


def staged(stages: Callable[[Config], tuple[Stage, ...]]) -> Method:
    return dataclasses.replace(METHOD, learner=None, stages=stages)


BROKEN: dict[str, tuple[Method, str, str]] = {
    "no paper": (dataclasses.replace(METHOD, paper=""), "check_entry", "must have a paper"),
    "full stop": (dataclasses.replace(METHOD, summary="A line."), "check_entry", "must not end with a full stop"),
    "not frozen": (dataclasses.replace(METHOD, config=LooseConfig), "check_entry", "frozen dataclass"),
    "same names": (staged(halves), "check_entry", "names of their own"),
    "short": (staged(short), "check_entry", r"must sum to 1, got 0\.75"),
    "knob": (dataclasses.replace(METHOD, config=WideConfig), "check_knobs", "knob tau must have a doc without a full stop"),
    "lambda": (broken(lambda config, context: Shifted(config, context)), "check_pickles", "its method must pickle"),  # type: ignore[arg-type]
    "nan": (broken(NotANumber), "check_loss", "loss must be finite, got nan"),
    "attached": (broken(Attached), "check_loss", "alike is a part of the loss and must be detached"),
    "detached": (broken(Detached), "check_gradient", "must reach the encoder; in fp32 it reaches 0% of it"),
    "stuck": (broken(Stuck), "check_gradient", "must follow one that does; in fp32 it stays"),
    "process": (broken(FromTheProcess), "check_same_seed", "the same seed must give the same losses"),
    "unseeded": (broken(Unseeded), "check_same_seed", "another seed must give another loss"),
    "forgetful": (broken(Forgetful), "check_resume", "must equal one that does not: .* the losses differ"),
    "cheating": (broken(Cheating), "check_labels_unread", "without them its losses are others"),
    "asking": (broken(Asking), "check_labels_unread", "but it asks for labelled images"),
    "idle": (dataclasses.replace(METHOD, uses_labels=True), "check_labels_unread", "uses labels, and asks for none"),
    "crowded": (broken(Crowded), "check_encoder", "answer for each image by itself"),
    "few-shot": (dataclasses.replace(METHOD, family="fewshot"), "check_episodes", "must end with an EpisodicLearner"),
    "bright": (broken(TooBright), "check_pictures", r"picture 'bytes' must lie in \[0, 1\]"),
    "loose": (broken(Loose), "check_device", "but these are not: weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_fails_the_check_that_is_for_it(name: str) -> None:
    method, check, sentence = BROKEN[name]
    (fitting,) = [found for found in CHECKS if found.__name__ == check]
    with pytest.raises(AssertionError, match=f"^shifted: .*{sentence}"):
        fitting(case_of(method))


def test_every_check_has_a_method_that_fails_it() -> None:
    assert {check.__name__ for check in CHECKS} == {check for _, check, _ in BROKEN.values()}


def test_one_call_runs_every_check() -> None:
    """Of a method with several faults it names the first."""
    with pytest.raises(AssertionError, match="these are not: weights"):
        check_method(broken(Loose))
    with pytest.raises(AssertionError, match="must have a paper"):
        check_method(dataclasses.replace(broken(Loose), paper=""))


def test_it_needs_no_pytest() -> None:
    code = "import sys, methods.testing; sys.exit('pytest' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
