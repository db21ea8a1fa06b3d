"""How loss weights and teachers' momenta change over a training."""

from __future__ import annotations

import math


def linear_ramp(progress: float, length: float, start: float = 0.0) -> float:
    """0 until ``start``, then linearly to 1 over the next ``length`` of the training (Lee 2013, Berthelot 2019).

    Args:
        progress: share of the training done, in [0, 1], against the study's top rung.
        length: share of the training that the ramp takes.
        start: share of the training before it.
    """
    if progress < start:
        return 0.0
    if length <= 0 or progress >= start + length:
        return 1.0
    return (progress - start) / length


def warmed_momentum(momentum: float, number: int) -> float:
    """min(momentum, 1 - 1 / (number + 2)): the plain average of all steps so far until the momentum's memory is shorter.

    Without it a teacher would remember the random start for 1 / (1 - momentum) steps (Tarvainen & Valpola 2017).

    Args:
        momentum: in [0, 1).
        number: steps done before this one.
    """
    return min(momentum, 1.0 - 1.0 / (number + 2))


def sigmoid_ramp(progress: float, share: float) -> float:
    """exp(-5 (1 - t)^2), t growing to 1 over the first ``share`` of the training (Laine & Aila 2016, arXiv:1610.02242)."""
    if share <= 0 or progress >= share:
        return 1.0
    return math.exp(-5 * (1 - progress / share) ** 2)


def cosine_momentum(base: float, progress: float) -> float:
    """From ``base`` at the start to 1 at the end, by a half cosine (Grill et al. 2020, arXiv:2006.07733)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
