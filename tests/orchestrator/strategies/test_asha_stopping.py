"""Successive halving by stopping, against a plain loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.training.clock import Fidelity
from orchestrator.budgets import Ledger, Trials
from orchestrator.engine.events import Reached, Scored, SegmentStarted, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Rung, Segment, TrialSpec
from orchestrator.strategies import AshaStopping, Continue, Decision, Done, Problem, Start, Stop, Wait


class Fixed:
    """Proposes the same configuration again and again."""

    def propose(self, history: History, method: str | None = None) -> Configuration:
        return Configuration("m", {})


def problem(rungs: tuple[float, ...], trials: int = 0, first: int = 1, unit: Any = "epochs") -> Problem:
    stops = tuple(Fidelity(unit, amount) for amount in rungs)
    return Problem(0, ("m",), stops, {"m": first}, Fixed(), Ledger((Trials(trials),)))


class Judge:
    """A strategy's decision on each score as it comes."""

    def __init__(self, rungs: tuple[float, ...], reduction: int, unit: Any = "epochs") -> None:
        self.problem, self.strategy, self.history = problem(rungs, unit=unit), AshaStopping(reduction), History()

    def __call__(self, key: str, epoch: float, value: float, default: bool = False) -> Decision:
        at = Fidelity(self.problem.top.unit, epoch)
        if key not in self.history.trials:
            self.history.add(TrialStarted(TrialSpec(key, 0, "m", {}, 0, origin="defaults" if default else "sampled")))
        self.history.add(SegmentStarted(Segment(key, at)))
        self.history.add(Scored(key, Rung(epoch, value, 1, value, value, "validation", None, 0.0), at))
        self.history.add(Reached(key, at, f"{key}.pt"))
        decision = self.strategy.next(self.problem, self.history)
        # Under way again, whatever was decided, so that the next score is the only one that waits.
        self.history.add(SegmentStarted(Segment(key, self.problem.top)))
        return decision


def quantile(values: list[float], q: float) -> float:
    """Linear between order statistics, by hand."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


scores = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 3]), st.floats(0, 1)), min_size=1, max_size=60)


@given(scores, st.integers(2, 5))
def test_against_a_plain_loop(course: list[tuple[int, int, float]], reduction: int) -> None:
    judge = Judge((1, 3, 9), reduction)
    seen: dict[int, dict[str, float]] = {1: {}, 3: {}}
    for number, epoch, value in course:
        default = number < 2
        decision = judge(str(number), epoch, value, default)
        seen[epoch][str(number)] = value
        cutoff = quantile(list(seen[epoch].values()), 1 - 1 / reduction)
        if abs(value - cutoff) < 1e-12:
            continue
        if value < cutoff and not default:
            assert decision == Stop(str(number), f"below the best 1/{reduction} of {len(seen[epoch])} at epoch {epoch}")
        else:
            later = tuple(Fidelity("epochs", e) for e in (1, 3, 9) if e > epoch)
            assert decision == Continue(str(number), later[0], later[1:])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_the_best_so_far_always_goes_on(values: list[float], reduction: int) -> None:
    judge = Judge((1, 2), reduction)
    for i, value in enumerate(values):
        decision = judge(str(i), 1, value)
        if value == max(values[: i + 1]):
            assert isinstance(decision, Continue)


def test_about_one_in_reduction_goes_on_when_all_worsen_and_all_when_all_improve() -> None:
    rising, falling = Judge((1, 2), 3), Judge((1, 2), 3)
    assert all(isinstance(rising(str(i), 1, i / 30), Continue) for i in range(30))
    assert [i for i in range(30) if isinstance(falling(str(i), 1, 1 - i / 30), Continue)] == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_enters_a_rung(value: float) -> None:
    judge, clean = Judge((1, 2), 2), Judge((1, 2), 2)
    for i, good in enumerate((0.5, 0.4, 0.6, 0.45, 0.55)):
        assert isinstance(judge(f"bad{i}", 1, value), Continue)
        assert judge(str(i), 1, good) == clean(str(i), 1, good)


def test_the_last_words_are_in_the_studys_unit() -> None:
    judge = Judge((10.0, 30.0), 2, "seconds")
    judge("a", 10.0, 0.9)
    assert judge("b", 10.0, 0.1) == Stop("b", "below the best 1/2 of 2 at 10 s")


def test_it_starts_waits_and_is_done() -> None:
    strategy, history = AshaStopping(), History()
    asked = strategy.next(problem((1, 3), trials=1), history)
    assert asked == Start(Configuration("m", {}), Fidelity("epochs", 1), (Fidelity("epochs", 3),))
    late = strategy.next(problem((1, 3, 9), trials=1, first=2), history)
    assert late == Start(Configuration("m", {}), Fidelity("epochs", 3), (Fidelity("epochs", 9),))
    history.add(TrialStarted(TrialSpec("0000", 0, "m", {}, 0)))
    history.add(SegmentStarted(Segment("0000", Fidelity("epochs", 1))))
    assert strategy.next(problem((1, 3), trials=1), history) == Wait()
    assert isinstance(strategy.next(problem((1, 3), trials=0), History()), Done)
