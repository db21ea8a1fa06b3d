"""Trials that a health signal stops: the study's limits, held against the epochs that a trial has reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.engine.events import Trained
from orchestrator.study import Limit

SETTLED = 50
"""Steps of a stage before its signals count: until then BatchNorm's running statistics, which embeddings are looked at with,
still remember their start (at the usual momentum of .1 by half a percent), and a healthy encoder may seem to have collapsed.
"""


class HealthLimits:
    """Who ends early because its training is ill.

    Args:
        limits: by signal.
        min_epochs: by method, the first epoch that counts; 1 for those not named.
    """

    def __init__(self, limits: Mapping[str, Limit], min_epochs: Mapping[str, int]) -> None:
        self.limits, self.min_epochs = limits, min_epochs

    def judge(self, method: str, curve: Sequence[Trained]) -> str:
        """Why the trial stops after the newest epoch, or an empty string if it goes on.

        Args:
            method: its name.
            curve: its epochs in order. A fixed function of these, so a resumed study decides alike.
        """
        first = self.min_epochs.get(method, 1)
        for signal, limit in self.limits.items():
            counting = [e for e in curve[-limit.epochs :] if e.epoch >= first and e.steps >= SETTLED]
            values = [event.parts.get(signal) for event in counting]
            broken = [limit.broken_by(value) for value in values if value is not None]
            if len(broken) == limit.epochs and all(broken):
                rows = f" in {limit.epochs} epochs in a row" if limit.epochs > 1 else ""
                return f"stopped: {signal} was {values[-1]:.3g}, {broken[-1]}{rows}"
        return ""
