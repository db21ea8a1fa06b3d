"""Losses are computed in float32, whatever precision the network runs in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_HALVES = (torch.float16, torch.bfloat16)


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Runs ``loss`` outside autocast, its half-precision tensors widened to float32; float64 stays."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        wide: Any = [_widened(value) for value in args]
        named: Any = {name: _widened(value) for name, value in kwargs.items()}
        with torch.autocast(device.type, enabled=False):
            return loss(*wide, **named)

    return wrapped


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value
