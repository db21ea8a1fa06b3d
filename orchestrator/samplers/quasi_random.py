"""Points spread evenly over the space: a scrambled Sobol sequence (Owen 1998; Bergstra & Bengio 2012 on its use here).

Optuna's own counts its points in its storage; here a point is a function of its number alone, as resuming needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from orchestrator.samplers.contract import Draw, Sampler

BLOCK = 256
"""Points made at a time: a power of two, so that a block is balanced."""


@dataclass(frozen=True)
class QuasiRandom(Sampler):
    """Learns nothing, but leaves no part of the space untried for long."""

    def optuna(self, draw: Draw) -> BaseSampler:
        return spread(draw)


def spread(draw: Draw) -> BaseSampler:
    """The point of the sequence that has the draw's number."""
    block, place = divmod(draw.number - 1, BLOCK)
    return _Point(dict(zip(draw.names, _points(len(draw.names), draw.stream, block)[place].tolist(), strict=True)))


@lru_cache(maxsize=64)
def _points(dimensions: int, seed: int, block: int) -> NDArray[np.float64]:
    """One block of the sequence [BLOCK, dimensions], in [0, 1)."""
    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if block:
        sequence.fast_forward(block * BLOCK)
    return np.asarray(sequence.random(BLOCK))


class _Point(BaseSampler):
    """Places one point of the unit cube into the ranges that it is asked for.

    Args:
        place: coordinate in [0, 1) by name of the parameter.
    """

    def __init__(self, place: Mapping[str, float]) -> None:
        self.place = place

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return within(param_distribution, self.place[param_name])


def within(distribution: BaseDistribution, share: float) -> Any:
    """The value that lies ``share`` in [0, 1) of the way through a distribution's range, on its scale."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        # Every whole number has its own stretch of the scale, half a step to either side.
        low, high = low - 0.5, high + 0.5
    found = low * (high / low) ** share if distribution.log else low + share * (high - low)
    if isinstance(distribution, IntDistribution):
        return int(np.clip(round(found), distribution.low, distribution.high))
    return float(np.clip(found, distribution.low, distribution.high))
