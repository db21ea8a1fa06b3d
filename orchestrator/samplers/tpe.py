"""Tree-structured Parzen estimators (Bergstra et al. 2011, NeurIPS) of one method's knobs, by Optuna.

Its first points, before anything is modelled, are spread evenly over the space in place of Optuna's by lot.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated

import optuna
from optuna.samplers import BaseSampler, TPESampler
from pydantic import Field

from orchestrator.samplers.contract import Draw, Sampler
from orchestrator.samplers.quasi_random import spread


@dataclass(frozen=True)
class Tpe(Sampler):
    """Models which knobs the better trials of a method have.

    Attributes:
        startup: trials with a score before anything is modelled, the defaults among them.
        together: whether knobs are modelled together, by groups that are active at once, or each for itself.
    """

    startup: Annotated[int, Field(ge=1)] = 5
    together: bool = True

    def optuna(self, draw: Draw) -> BaseSampler:
        if draw.scored < self.startup:
            return spread(draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=draw.seed, n_startup_trials=0, multivariate=self.together, group=self.together)
