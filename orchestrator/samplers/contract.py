"""Which knobs a method's next trial gets: what a sampler owes.

A sampler answers each draw with an Optuna sampler made anew, which then sees the method's own trials as an Optuna study. So a
draw is a fixed function of (seed, history), and a resumed study draws as an undisturbed one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Draw:
    """One draw of a configuration of one method.

    Attributes:
        seed: of this draw alone, below 2**32.
        stream: seed that all draws of the method share, below 2**32.
        number: which of the method's points it is, from 1; the defaults are point 0. A draw that repeats an earlier
            configuration is made again with the next number.
        scored: trials of the method that have a score.
        names: of all parameters that the method may have, in Optuna's words, in order.
    """

    seed: int
    stream: int
    number: int
    scored: int
    names: tuple[str, ...]


class Sampler(ABC):
    """Which knobs come next. Concrete samplers are final and hold settings only.

    Attributes:
        remembers: whether what it makes keeps notes in its trials (Optuna's system attributes), as evolution strategies do; a
            resumed study then makes every draw again.
    """

    remembers: ClassVar[bool] = False

    @abstractmethod
    def optuna(self, draw: Draw) -> BaseSampler:
        """The Optuna sampler that makes this draw: a fixed function of ``draw``."""
