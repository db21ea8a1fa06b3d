"""Successive halving against a plain loop."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.strategies.asha_stopping import AshaStopping


def quantile(values: list[float], q: float) -> float:
    """Linear between order statistics, by hand."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


scores = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([1, 3, 9]), st.floats(0, 1), st.booleans()), min_size=1, max_size=60
)


@given(scores, st.integers(2, 5))
def test_against_a_plain_loop(course: list[tuple[int, int, float, bool]], reduction: int) -> None:
    rungs = AshaStopping((1, 3, 9), reduction)
    seen: dict[int, dict[str, float]] = {1: {}, 3: {}}
    for number, epoch, value, exempt in course:
        reason = rungs.judge(str(number), epoch, value, exempt)
        if epoch == 9:
            assert reason == ""
            continue
        seen[epoch][str(number)] = value
        cutoff = quantile(list(seen[epoch].values()), 1 - 1 / reduction)
        if abs(value - cutoff) < 1e-12:
            continue
        stops = value < cutoff and not exempt
        assert reason == (f"below the best 1/{reduction} of {len(seen[epoch])} at epoch {epoch}" if stops else "")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(2, 5))
def test_the_best_so_far_always_goes_on(values: list[float], reduction: int) -> None:
    rungs = AshaStopping((1, 2), reduction)
    for i, value in enumerate(values):
        reason = rungs.judge(str(i), 1, value)
        if value == max(values[: i + 1]):
            assert reason == ""


def test_about_one_in_reduction_goes_on_when_all_worsen_and_all_when_all_improve() -> None:
    rising, falling = AshaStopping((1, 2), 3), AshaStopping((1, 2), 3)
    assert all(rising.judge(str(i), 1, i / 30) == "" for i in range(30))
    assert [i for i in range(30) if falling.judge(str(i), 1, 1 - i / 30) == ""] == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_enters_a_rung(value: float) -> None:
    rungs, clean = AshaStopping((1, 2), 2), AshaStopping((1, 2), 2)
    for i, good in enumerate((0.5, 0.4, 0.6, 0.45, 0.55)):
        assert rungs.judge(f"bad{i}", 1, value) == ""
        assert rungs.judge(str(i), 1, good) == clean.judge(str(i), 1, good)


def test_the_exempt_go_on_and_still_count_against_others() -> None:
    rungs = AshaStopping((1, 2), 2)
    assert rungs.judge("a", 1, 0.9) == ""
    assert rungs.judge("b", 1, 0.1, exempt=True) == ""
    assert rungs.judge("c", 1, 0.2) == "below the best 1/2 of 3 at epoch 1" or rungs.judge("c", 1, 0.2) == ""
    assert rungs.judge("d", 1, 0.15) == "below the best 1/2 of 4 at epoch 1"


def test_the_last_rung_and_epochs_between_never_stop_a_trial() -> None:
    rungs = AshaStopping((1, 3), 2)
    for epoch in (2, 3, 4):
        for i, value in enumerate((0.9, 0.8, 0.1)):
            assert rungs.judge(str(i), epoch, value) == ""
    assert AshaStopping((5,), 3).judge("a", 5, 0.0) == ""


def test_a_rung_scored_again_replaces_itself() -> None:
    rungs = AshaStopping((1, 2), 2)
    rungs.judge("a", 1, 0.9)
    for _ in range(5):
        rungs.judge("b", 1, 0.1)
    assert rungs.judge("c", 1, 0.5) == ""
    assert rungs.judge("d", 1, 0.4).endswith("of 4 at epoch 1")
