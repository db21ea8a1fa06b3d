"""Any sampler of Optuna's, or one of a person's own that follows Optuna's interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from optuna.samplers import BaseSampler

from orchestrator.samplers.contract import Draw, Sampler


@dataclass(frozen=True)
class OwnOptuna(Sampler):
    """Draws by the Optuna sampler that ``make(seed=...)`` gives.

    Attributes:
        make: the sampler's class, or a function that makes one from ``seed``.
        settings: further keyword arguments.
    """

    remembers: ClassVar[bool] = True

    make: Callable[..., BaseSampler]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def optuna(self, draw: Draw) -> BaseSampler:
        return self.make(**self.settings, seed=draw.seed)
