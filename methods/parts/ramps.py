"""How loss weights and teachers' momenta begin. The sigmoid ramp lives beside the teachers, in ``methods.parts.ema``."""

from __future__ import annotations


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
