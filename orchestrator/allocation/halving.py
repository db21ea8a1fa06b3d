"""Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) over methods, without a number of trials fixed beforehand.

Round k: each of the methods still in gets trials until it has ``trials`` * 2**k; then the better half of them stay in, but
never fewer than ``keep``. Once ``keep`` are left, they share what follows. Who stays in is decided anew from all scores each
time, so a trial that was still under way when a round ended can bring its method back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field as Number

from orchestrator.allocation.contract import Allocation, Field


@dataclass(frozen=True)
class Halving(Allocation):
    """The better half of the methods go on.

    Attributes:
        trials: of each method in the first round.
        keep: methods that share the rest of the search.
    """

    trials: Annotated[int, Number(ge=1)] = 8
    keep: Annotated[int, Number(ge=1)] = 3

    def next(self, field: Field) -> str:
        return field.behind(self._rounds(field)[-1])

    def why(self, field: Field) -> str:
        rounds = self._rounds(field)
        if len(rounds) == 1:
            return f"every method gets {self.trials} trials before any is preferred"
        last = ", ".join(rounds[-1])
        return f"after {self.trials} trials each the better half went on, with twice as many each time; still in: {last}"

    def _rounds(self, field: Field) -> list[Sequence[str]]:
        """Who is in, round by round, up to the one under way."""
        rounds: list[Sequence[str]] = [field.methods]
        quota = self.trials
        while len(rounds[-1]) > self.keep and min(field.standings[name].started for name in rounds[-1]) >= quota:
            rounds.append(self._better(rounds[-1], field))
            quota *= 2
        return rounds

    def _better(self, inside: Sequence[str], field: Field) -> Sequence[str]:
        best = field.compared(inside)
        stay = max(self.keep, math.ceil(len(inside) / 2))
        order = sorted(inside, key=lambda name: -best.get(name, -math.inf))
        return [name for name in inside if name in order[:stay]]
