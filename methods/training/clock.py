"""How far a training has come, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["epochs", "seconds", "labels"]


@dataclass(frozen=True)
class Fidelity:
    """How far a trial has come: so many epochs, seconds of training, or labels bought. Whole amounts stay whole numbers."""

    unit: Unit
    amount: float

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"{self.amount:.4g} s"
        word = self.unit if self.amount != 1 else self.unit.removesuffix("s")
        return f"{self.amount:g} {word}"
