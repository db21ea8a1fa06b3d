"""A method on 64 tiny images: what the checks train."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from methods.batch import Batch, RandomStream
from methods.contracts import Method
from methods.data.records import ArrayImages, TrainData
from methods.parts.encoders import EncoderSpec
from methods.training import FeatureTraining, Precision, Training, TrainSettings
from methods.world import World
from search_spaces.domains import build

CLASSES, EACH, SHOWN, SIDE = 4, 16, 8, 16

TINY: dict[str, object] = {
    "batch_size": 16, "pretrain_batch_size": 16, "mu": 1, "tasks": 2, "ways": 3, "shots": 1, "queries": 2, "queue": 32,
    "negatives": 8, "generations": 1,
}  # fmt: skip
"""Values that make a method fit 64 images, for whichever of these knobs it has."""


def tiny_data(labels: bool = True, channels: int = 3, captions: bool = True) -> TrainData:
    """64 images of 4 named classes, half of each class labelled, with groups, and with captions that tell no class."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(CLASSES), EACH)
    pattern = rng.uniform(60, 195, (CLASSES, SIDE, SIDE, channels))
    pixels = (pattern[truth] + rng.normal(0, 30, (len(truth), SIDE, SIDE, channels))).clip(0, 255).astype(np.uint8)
    shown = np.tile(np.arange(EACH) < SHOWN, CLASSES)
    label = np.where(shown & labels, truth, -1).astype(np.int64)
    tokens = np.stack([truth + 1, truth + 5, np.zeros_like(truth)], axis=1)
    return TrainData(
        images=ArrayImages(pixels),
        label=label,
        classes=CLASSES,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        group=truth // 2,
        tokens=tokens if captions else None,
        names=("red fox", "grey owl", "pike", "old oak"),
        words=tuple("abcdefgh") if captions else (),
    )


def tiny_batch() -> Batch:
    """Every fourth image of ``tiny_data``, all with labels."""
    data, index = tiny_data(), torch.arange(0, CLASSES * EACH, 4)
    assert data.group is not None
    assert data.tokens is not None
    return Batch(
        index=index,
        images=data.images.take(index),
        stream=RandomStream(0, len(index), slice(0, len(index)), torch.device("cpu")),
        label=index // EACH,
        group=torch.from_numpy(data.group)[index],
        tokens=torch.from_numpy(data.tokens)[index],
    )


@dataclass(frozen=True)
class Case:
    """A method with the knobs it is checked at.

    Attributes:
        method: the method.
        values: knobs other than those of ``TINY`` and the defaults, as (name, value).
        captions: whether the images have captions; without, a method that needs some makes them of the class names.
    """

    method: Method
    values: tuple[tuple[str, object], ...] = ()
    captions: bool = True

    def __str__(self) -> str:
        said = [*(f"{name}={value}" for name, value in self.values), *([] if self.captions else ["no captions"])]
        return f"{self.method.name} ({', '.join(said)})" if said else self.method.name

    def config(self) -> Any:
        fitting = {name: value for name, value in TINY.items() if name in self.method.knobs()}
        return build(self.method.config, {**fitting, **dict(self.values)}, self.method.name)

    def data(self, labels: bool = True) -> TrainData:
        return tiny_data(labels, captions=self.captions)

    def settings(self, seed: int = 0, epoch_images: int = 64, precision: Precision = "fp32") -> TrainSettings:
        """Two epochs."""
        encoder = EncoderSpec("vit_tiny" if self.method.encoder == "vit" else "resnet_small")
        return TrainSettings(2, encoder, seed, epoch_images, precision)

    def start(self, seed: int = 0, labels: bool = True, world: World | None = None, precision: Precision = "fp32") -> Any:
        """A training of 2 epochs: 2 steps where there is one stage, about 2 a stage where there are several.

        Of a method on features a ``FeatureTraining``, of any other a ``Training``.
        """
        if self.method.on_features:
            return FeatureTraining(self.method, self.config(), self.data(labels), self.settings(seed), world)
        images = _images_a_step(self) * len(self.method.plan(self.config()))
        return _training(self, images, seed, labels, world, precision)

    def trained(self) -> tuple[list[Mapping[str, float]], Training]:
        """An uninterrupted training: what it reported after each epoch, and the training, which must not be changed."""
        return _trained(self)


def case_of(method: Method, values: Mapping[str, object] | None = None, captions: bool = True) -> Case:
    return Case(method, tuple((values or {}).items()), captions)


def _training(
    case: Case, epoch_images: int, seed: int = 0, labels: bool = True, world: World | None = None, precision: Precision = "fp32"
) -> Training:
    return Training(case.method, case.config(), case.data(labels), case.settings(seed, epoch_images, precision), world)


@lru_cache(maxsize=128)
def _images_a_step(case: Case) -> int:
    return _training(case, 64).learner.batch_spec().images


@lru_cache(maxsize=2)  # The checks of a case come one after another.
def _trained(case: Case) -> tuple[list[Mapping[str, float]], Training]:
    training = case.start()
    return [training.train_epoch().parts for _ in range(2)], training


def through_file(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state as a file would give it back, loaded without unpickling code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: Mapping[str, Any] = torch.load(file, weights_only=True)
    return loaded
