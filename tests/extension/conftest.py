"""Six toys, one file each: what people add of their own without touching the product. Each runs in a real study."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.connect import connect

SMALL: dict[str, Any] = {
    "data": "digits",
    "size": 12,
    "labels": 60,
    "methods": ["supervised", "pseudo_label"],
    "trials": 2,
    "epochs": 1,
    "epoch_images": 32,
    "search": {"*.batch_size": 16},
    "selection": {"top": 1, "seeds": 1, "refit": False},
    "slots": 1,
}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One local Ray for a toy's file; ``run`` finds it."""
    with connect("local", cpus=2):
        yield


@pytest.fixture
def small(ray_here: None) -> dict[str, Any]:
    """Fields of a small study."""
    return dict(SMALL)
