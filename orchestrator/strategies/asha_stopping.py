"""Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at every rung the best 1/reduction go on.

Three rules beside the paper's. A method is not judged before its ``min_epochs``, so rungs compare equals. Each method's
first trial, its defaults, always trains to the end, so that every method is seen once at full length. A score that is not
a number never enters a rung.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np


class AshaStopping:
    """Who goes on at which epoch.

    Args:
        epochs: the rungs, ascending; the last is where training ends anyway.
        reduction: one of so many goes on.
    """

    def __init__(self, epochs: tuple[int, ...], reduction: int) -> None:
        self.epochs, self.reduction = epochs, reduction
        self._scores: dict[int, dict[str, float]] = defaultdict(dict)

    def judge(self, key: str, epoch: int, value: float, exempt: bool = False) -> str:
        """Records the score; returns why the trial stops here, or an empty string if it goes on."""
        if epoch not in self.epochs[:-1] or not math.isfinite(value):
            return ""
        scores = self._scores[epoch]
        scores[key] = value
        cutoff = float(np.quantile(list(scores.values()), 1 - 1 / self.reduction))
        if exempt or value >= cutoff:
            return ""
        return f"below the best 1/{self.reduction} of {len(scores)} at epoch {epoch}"
