"""Shared by all tests: few threads, tiny deterministic data, and a tiny encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Split, TrainData
from methods.parts.encoders import Encoder

# Ray's workers stand back (niceness 15) by default: beside another test process they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# A study of a test keeps no embeddings for the person's own, and takes none of theirs.
os.environ["LABELWISE_CACHE"] = ""
torch.set_num_threads(1)
threadpool_limits(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes, files that start Ray go first: they take longest, and none shall be left for the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Every test starts from the same global random state and must leave grad mode, default dtype and threads as they were."""
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    found = torch.get_num_threads()
    torch.set_num_threads(1)  # so that only the test that changed it fails
    assert found == 1, "a study leaves the process its threads"


def tiny_images(classes: int, each: int, size: int = 16, channels: int = 3, seed: int = 0, noise: float = 40) -> ImageSet:
    """Coloured noise around a picture per class: learnable, deterministic, ordered class by class; two groups of classes."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(7).uniform(60, 195, (classes, size, size, channels))
    label = np.repeat(np.arange(classes), each)
    pixels = pattern[label] + rng.normal(0, noise, (len(label), size, size, channels))
    return ImageSet(
        images=ArrayImages(pixels.clip(0, 255).astype(np.uint8)),
        label=label.astype(np.int64),
        classes=tuple(f"class {k}" for k in range(classes)),
        group=(label * 2 // classes).astype(np.int64),
        groups=("first half", "second half"),
    )


def tiny_split(classes: int = 4, each: int = 16, labelled: int = 8, size: int = 16, channels: int = 3) -> Split:
    """A study's data in small: of every class ``labelled`` images show their label, 4 validate, and a test set of its own."""
    data = tiny_images(classes, each, size, channels)
    order = np.arange(classes * each).reshape(classes, each)
    shown, validation = order[:, :labelled].ravel(), order[:, labelled : labelled + 4].ravel()
    label = np.full(len(data), -1, dtype=np.int64)
    label[shown] = data.label[shown]
    half = (0.5,) * channels
    train = TrainData(data.images, label, classes, half, (0.25,) * channels, group=data.group)
    test = tiny_images(classes, each, size, channels, seed=1)
    return Split(
        train=train,
        labelled=LabelledSubset(data, shown, data.label[shown]),
        validation=LabelledSubset(data, validation, data.label[validation]),
        test=LabelledSubset(test, np.arange(len(test)), test.label),
        holdout=False,
    )


class TinyEncoder(Encoder):
    """Two convolutions; a real encoder in small."""

    layers = ("first", "last")

    def __init__(self, channels: int = 3, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.first = nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(6, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim), nn.ReLU())

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = images if images.is_floating_point() else images.float() / 255
        first = self.first(x * 4 - 2)
        return {"first": first, "last": self.last(first)}

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)["last"].mean(dim=(2, 3))


@pytest.fixture
def split() -> Split:
    return tiny_split()


@pytest.fixture
def tiny_encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def make_split() -> Callable[..., Split]:
    """make_split(classes, each, labelled, size, channels): a study's data in small."""
    return tiny_split


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    """make_images(classes, each, size, channels, seed, noise): learnable labelled images, ordered class by class."""
    return tiny_images
