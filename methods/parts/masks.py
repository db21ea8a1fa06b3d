"""Confident predictions as labels, and the signals that tell whether they are healthy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.world import World


def confident(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The most probable class, int64 [B], and float [B]: 1 where its probability reaches the threshold, else 0.

    Args:
        probabilities: [B, K].
        threshold: in [0, 1].
    """
    best, label = probabilities.max(dim=1)
    return label, (best >= threshold).to(probabilities.dtype)


def health(label: Tensor, mask: Tensor, classes: int, world: World) -> dict[str, Tensor]:
    """Signals for a learner's loss parts.

    Args:
        label: int64 [B], pseudo-labels.
        mask: float [B], 1 where one is used.
        classes: K.
        world: the workers; the histogram is the global batch's.
    Returns:
        ``mask_rate``, the share of used pseudo-labels; ``pseudo_label_balance``, the entropy of their class histogram over
        log K: 1 where classes are equally frequent, near 0 where one class has swallowed the others (or none is used).
    """
    histogram = world.sum(mask.new_zeros(classes).index_add(0, label, mask))  # K
    share = histogram / histogram.sum().clamp_min(1)
    entropy = torch.special.entr(share).sum() / math.log(max(classes, 2))
    return {"mask_rate": mask.mean(), "pseudo_label_balance": entropy}
