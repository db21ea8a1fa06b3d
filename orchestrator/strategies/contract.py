"""What comes next in a search: the decisions that there are, and what a strategy owes.

A strategy is a fixed function of (seed, history): it keeps no state of its own, so a resumed study decides as an undisturbed
one. What it looks up again and again (trials that wait, scores at a rung) the history keeps at hand; what the sampler has
learnt from the history is the sampler's cache, which ``orchestrator.testing`` holds against a fresh replay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Shape

from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Trial
from search_spaces.domains import Value


@dataclass(frozen=True)
class Start:
    """A new trial: a configuration, trained ``to`` a fidelity; ``onward`` as in ``Segment``."""

    configuration: Configuration
    to: Fidelity
    onward: tuple[Fidelity, ...] = ()


@dataclass(frozen=True)
class Continue:
    """A trial that waits goes on from its checkpoint."""

    key: str
    to: Fidelity
    onward: tuple[Fidelity, ...] = ()


@dataclass(frozen=True)
class Fork:
    """A new trial that starts from another's newest checkpoint, with the other's knobs but for ``changes``."""

    key: str
    changes: Mapping[str, Value]
    to: Fidelity
    onward: tuple[Fidelity, ...] = ()


@dataclass(frozen=True)
class Stop:
    """A trial ends here; ``reason`` is for people."""

    key: str
    reason: str


@dataclass(frozen=True)
class Wait:
    """Nothing until a segment that is under way ends."""


@dataclass(frozen=True)
class Done:
    """Nothing more to search; ``reason`` is for people."""

    reason: str = "nothing is left to try"


Decision = Start | Continue | Fork | Stop | Wait | Done


class Proposes(Shape):
    """What suggests configurations: a fixed function of (seed, history)."""

    def propose(self, history: History, method: str | None = None) -> Configuration:
        """The next configuration to try, of one method where it is named; a method's defaults come first."""
        ...


class Limits(Shape):
    """What ends a search."""

    def may_start(self, history: History, to_come: Sequence[tuple[Trial, float]] = ()) -> bool:
        """Whether the budgets allow another trial, with what is to come in any case: trainings like these, how many of each."""
        ...


@dataclass(frozen=True)
class Problem:
    """What a strategy may know of its study beside the history.

    Attributes:
        seed: of the study.
        methods: names of the methods, in the study's order.
        rungs: fidelities at which trials may be scored, ascending; the last is the top, where training ends.
        first_rung: by method, the epoch before which it must not be judged.
        sampler: suggests configurations.
        budgets: what may be spent.
        in_one_go: names of the methods that go straight to the top (those on frozen features).
    """

    seed: int
    methods: tuple[str, ...]
    rungs: tuple[Fidelity, ...]
    first_rung: Mapping[str, int]
    sampler: Proposes
    budgets: Limits
    in_one_go: frozenset[str] = frozenset()

    @property
    def top(self) -> Fidelity:
        """Where training ends."""
        return self.rungs[-1]

    def rungs_of(self, method: str) -> tuple[Fidelity, ...]:
        """The rungs at which a trial of this method may be scored; the top is always among them."""
        if method in self.in_one_go:
            return (self.top,)
        first = self.first_rung.get(method, 1)
        return tuple(r for r in self.rungs if r == self.top or r.unit != "epochs" or r.amount >= first)

    def after(self, trial: Trial) -> tuple[Fidelity, ...]:
        """The rungs that are still ahead of a trial, ascending."""
        done = 0.0 if trial.done is None else trial.done.amount
        return tuple(r for r in self.rungs_of(trial.spec.method) if r.amount > done)

    def stands_at(self, trial: Trial) -> Fidelity:
        """The rung that a trial, which has ended a segment, has reached."""
        assert trial.done is not None
        return next(at for at in reversed(self.rungs) if at.amount <= trial.done.amount)

    def may_start(self, history: History, to_come: Sequence[tuple[Trial, float]] = ()) -> bool:
        """Whether the budgets allow another trial, with what is ``to_come`` in any case, as in ``Limits``."""
        return self.budgets.may_start(history, to_come)

    def start(self, history: History) -> Start:
        """The sampler's next configuration, to the first rung of its method."""
        configuration = self.sampler.propose(history)
        first, *rest = self.rungs_of(configuration.method)
        return Start(configuration, first, tuple(rest))


class Strategy(ABC):
    """What comes next. Concrete strategies are final and hold settings only."""

    @abstractmethod
    def next(self, problem: Problem, history: History) -> Decision:
        """One decision. Asked again and again while slots are free, each time with the decision before in the history.

        ``Start`` and ``Fork`` after ``problem.may_start(history)`` has become false count as ``Done``. A trial that
        reaches the top ends by itself.
        """
