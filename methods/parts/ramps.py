"""How a loss weight grows over a training. Progress is in [0, 1], measured against the study's top rung."""

from __future__ import annotations

import math


def sigmoid_ramp(progress: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t growing from 0 to 1 in the first ``length`` of the training, 1 after it (Laine & Aila 2016)."""
    if length <= 0 or progress >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - progress / length) ** 2)


def linear_ramp(progress: float, length: float, start: float = 0.0) -> float:
    """0 until ``start``, then linearly to 1 over the next ``length`` of the training (Lee 2013, Berthelot 2019)."""
    if progress < start:
        return 0.0
    if length <= 0 or progress >= start + length:
        return 1.0
    return (progress - start) / length


def warmed_momentum(momentum: float, number: int) -> float:
    """min(momentum, 1 - 1 / (number + 2)): an average over all steps so far until that is longer than the momentum's.

    Without it a teacher would remember the random start for 1 / (1 - momentum) steps (Tarvainen & Valpola 2017).
    """
    return min(momentum, 1.0 - 1.0 / (number + 2))
