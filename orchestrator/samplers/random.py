"""Random search (Bergstra & Bengio 2012, JMLR 13): every knob by lot over its range, on its scale."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.samplers import BaseSampler, RandomSampler

from orchestrator.samplers.contract import Draw, Sampler


@dataclass(frozen=True)
class Random(Sampler):
    """Learns nothing."""

    def optuna(self, draw: Draw) -> BaseSampler:
        return RandomSampler(seed=draw.seed)
