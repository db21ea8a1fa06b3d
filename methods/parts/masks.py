"""Confident predictions as labels."""

from __future__ import annotations

from torch import Tensor


def confident(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The most probable class, int64 [B], and float [B]: 1 where its probability reaches the threshold, else 0.

    Args:
        probabilities: [B, K].
        threshold: in [0, 1].
    """
    best, label = probabilities.max(dim=1)
    return label, (best >= threshold).to(probabilities.dtype)
