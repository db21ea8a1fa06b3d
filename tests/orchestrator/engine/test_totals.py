"""What a history adds up to as trials end, against sums over all trials at every event."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration
from orchestrator.engine.selection import lineup
from orchestrator.engine.totals import ExactSum
from orchestrator.study import Study
from orchestrator.testing import simulate

numbers = st.lists(st.floats(-1e9, 1e9, allow_nan=False), max_size=40)


@given(numbers, numbers)
def test_a_sum_is_exact_in_any_order(added: list[float], more: list[float]) -> None:
    one, two = ExactSum(), ExactSum()
    for value in added:
        one.add(value)
    for value in reversed(added):
        two.add(value)
    assert one.total(more) == two.total(reversed(more)) == math.fsum([*added, *more])


def pretend(configuration: Configuration, fidelity: Fidelity, seed: int) -> tuple[float, float]:
    drawn = seed_of(configuration.method, sorted(configuration.values.items()), seed) / 2**63
    return round(0.5 + 0.3 * drawn, 1) + 0.01 * fidelity.amount, (1 + drawn) * fidelity.amount


@pytest.mark.parametrize("unit", [{"epochs": 9}, {"seconds": 9.0}])
def test_they_are_those_of_all_trials_at_every_event(unit: dict[str, Any]) -> None:
    study = Study(data="digits", methods=["supervised", "mixup", "simclr"], **unit, trials=24, strategy="asha")
    history = History()
    for event in simulate(study, pretend, slots=3):
        history.add(event)
        everything, search = list(history.trials.values()), history.search()
        assert history.epochs_trained() == pytest.approx(sum(t.epochs - t.inherited for t in everything), abs=1e-9)
        assert history.busy_seconds() == pytest.approx(sum(t.busy for t in everything), abs=1e-9)
        assert history.search_effort() == pytest.approx(sum(t.effort for t in search), abs=1e-9)
        assert history.longest_scoring() == max((t.scoring for t in search), default=0.0)
        assert history.totals.ended == sum(t.status != "running" for t in search)
        assert history.totals.failed == 0
        finished = [t for t in search if t.status == "finished"]
        for most in (1, 2, 3, 5, 50):
            few = lineup(history.totals.leaders(most), most)
            assert [t.spec.key for t in few] == [t.spec.key for t in lineup(finished, most)]
        for at in (Fidelity("epochs", 1), Fidelity("epochs", 3), Fidelity("seconds", 1.0)):
            scores = history.scores_at(at)
            order = sorted(scores, key=lambda key: (-scores[key], key))
            assert [history.place_at(at, key) for key in order] == list(range(len(order)))
