"""Trainings of self-supervised methods in small, and one step's input for any learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from methods.batch import Batch, RandomStream, Step
from methods.contracts import Method
from methods.data.records import ArrayImages, TrainData, channel_statistics
from methods.parts.encoders import EncoderSpec
from methods.training import Training, TrainSettings
from methods.world import World
from search_spaces.domains import build


def random_data(n: int = 48, side: int = 16, channels: int = 3, seed: int = 0) -> TrainData:
    """Images of noise around one of four smooth patterns each, without labels."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (4, 4, 4, channels))
    pattern = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    pixels = pattern[rng.integers(4, size=n)] + rng.normal(0, 25, (n, side, side, channels))
    images = ArrayImages(pixels.clip(0, 255).astype(np.uint8))
    return TrainData(images, np.full(n, -1, dtype=np.int64), 4, *channel_statistics(images))


def digits_data() -> TrainData:
    """scikit-learn's digits at 16 x 16, all labels known."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images.repeat(2, axis=1).repeat(2, axis=2)[..., None] * (255 / 16)).astype(np.uint8)
    images = ArrayImages(pixels)
    return TrainData(images, found.target.astype(np.int64), 10, *channel_statistics(images), flip=False)


def training_of(
    method: Method,
    data: TrainData | None = None,
    encoder: str = "resnet_small",
    epochs: int = 2,
    epoch_images: int = 32,
    seed: int = 0,
    **values: Any,
) -> Training:
    given = {"batch_size": 16, **values}
    config = build(method.config, given, method.name)
    settings = TrainSettings(epochs, EncoderSpec(encoder), seed, epoch_images, "fp32")
    return Training(method, config, data or random_data(), settings)


def batch_of(data: TrainData, index: list[int], seed: int = 5) -> Batch:
    places = torch.tensor(index)
    tokens = None if data.tokens is None else torch.from_numpy(data.tokens)[places]
    draws = RandomStream(seed, len(index), slice(0, len(index)), torch.device("cpu"))
    return Batch(places, data.images.take(places), draws, torch.from_numpy(data.label)[places], tokens=tokens)


def step_of(batch: Batch, number: int = 0, progress: float = 0.0) -> Step:
    labelled = dataclasses.replace(batch)
    return Step(number, progress, World(), pool=batch, labelled=labelled)


@pytest.fixture
def make_data() -> Callable[..., TrainData]:
    """make_data(n, side, channels, seed): random images without labels."""
    return random_data


@pytest.fixture(scope="session")
def digits() -> TrainData:
    return digits_data()


@pytest.fixture
def train() -> Callable[..., Training]:
    """train(METHOD, data, encoder, epochs, epoch_images, seed, **knobs): a training, not yet begun."""
    return training_of


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """make_batch(data, index, seed): these images as a batch with fresh draws."""
    return batch_of


@pytest.fixture
def make_step() -> Callable[..., Step]:
    """make_step(batch, number, progress): a step of one worker whose pool and labelled feed are that batch."""
    return step_of
