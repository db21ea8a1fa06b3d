"""Batched augmentation. STUB CONTRACT, to be completed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from methods.batch import Draws

Augment = Callable[[Tensor, Draws], Tensor]
"""uint8 images [B, C, H, W] (or float in [0, 1]) and their draws -> float32 views [B, C, H, W] in [0, 1]."""


def augmentation(recipe: str, strength: float = 1.0, flip: bool = True, mask_ratio: float | None = None) -> Augment:
    raise NotImplementedError
