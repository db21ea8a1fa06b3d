"""MaxUCB (Balef, Vernade & Eggensperger 2025, arXiv:2505.05226), a bandit for the best single score of each arm, with a floor.

Deviation: a floor of trials a method, since on ten methods the plain rule left nine of them a quarter of 200 trials together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field as Number

from orchestrator.allocation.contract import Allocation, Field
from orchestrator.allocation.standings import common_rung


@dataclass(frozen=True)
class MaxUcb(Allocation):
    """Next is the method with the largest (best score + (alpha ln t / n)^2), scores scaled to 0..1, for n of all t trials.

    Attributes:
        floor: trials of each method before any is preferred.
        alpha: how much a method that was tried little is preferred.
    """

    floor: Annotated[int, Number(ge=1)] = 10
    alpha: Annotated[float, Number(ge=0)] = 0.5

    def next(self, field: Field) -> str:
        few = [name for name in field.methods if field.standings[name].started < self.floor]
        best = field.compared(field.methods)
        if few or not best:
            return field.behind(few or field.methods)
        rung = common_rung(field.standings[name] for name in field.methods)
        assert rung is not None
        lowest = min(field.standings[name].worst[rung] for name in best)
        span = max(best.values()) - lowest or 1.0
        t = sum(field.standings[name].started for name in field.methods)

        def bound(name: str) -> float:
            scaled = (best[name] - lowest) / span if name in best else 0.0
            return scaled + (self.alpha * math.log(t) / field.standings[name].started) ** 2

        return max(field.methods, key=bound)

    def why(self, field: Field) -> str:
        if any(standing.started < self.floor for standing in field.standings.values()):
            return f"every method gets {self.floor} trials before any is preferred"
        return f"after {self.floor} trials each, those with the best score or few trials went first (MaxUCB)"
