"""One method's trials as a sampler sees them, points spread evenly, and draws that need no storage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from methods.training.clock import Fidelity
from orchestrator.samplers import OwnOptuna, QuasiRandom, Random, Sampler, Tpe
from orchestrator.samplers.model import Model, in_order
from orchestrator.samplers.quasi_random import within
from search_spaces.domains import Float
from search_spaces.space import Space, Suggestion

LOW, MIDDLE, HIGH = (Fidelity("epochs", epoch) for epoch in (1, 3, 9))


def test_trials_without_rungs_are_ordered_by_their_scores() -> None:
    assert in_order([{HIGH: 0.5}, {HIGH: 0.9}, {}, {HIGH: 0.1}]) == [3, 0, 1]


def test_those_that_went_on_change_places_among_themselves_alone() -> None:
    """Trial 0 is a default that went to the top though it was the worst at the first rung: it stays last."""
    scores = [{LOW: 0.1, MIDDLE: 0.2, HIGH: 0.3}, {LOW: 0.5}, {LOW: 0.6, MIDDLE: 0.9}, {LOW: 0.7, MIDDLE: 0.8, HIGH: 0.85}]
    assert in_order(scores) == [0, 1, 3, 2]
    overtaken = [{LOW: 0.1, MIDDLE: 0.95}, *scores[1:]]
    assert in_order(overtaken) == [3, 1, 2, 0]


@given(st.lists(st.dictionaries(st.sampled_from([LOW, MIDDLE, HIGH]), st.floats(0, 1), max_size=3), max_size=20))
def test_the_order_is_one_of_all_that_have_a_score(scores: list[dict[Fidelity, float]]) -> None:
    order = in_order(scores)
    assert sorted(order) == [place for place, of in enumerate(scores) if of]
    top = [scores[place][HIGH] for place in order if HIGH in scores[place]]
    assert top == sorted(top), "at the highest rung they stand by their scores there"


def model(sampler: Sampler, configs: dict[str, type], seed: int = 0) -> Model:
    return Model(Space(configs).only("two"), sampler, seed)


def told(found: Model, scores: list[dict[Fidelity, float]]) -> None:
    for number, of in enumerate(scores):
        found.enter(str(number), Suggestion("two", {"ratio": 0.3 + number / 100, "batch": 64}))
        for at, value in of.items():
            found.score(str(number), at, value)


class Looks(RandomSampler):
    """Keeps what it was shown."""

    def __init__(self, seen: list[Any], seed: int) -> None:
        super().__init__(seed=seed)
        self.seen = seen

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        self.seen[:] = [(t.state, t.value) for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        return {}


def test_the_newest_scores_are_dealt_out_in_order_and_a_failure_counts_as_the_worst(configs: dict[str, type]) -> None:
    seen: list[Any] = []
    found = model(OwnOptuna(partial(Looks, seen)), configs)
    told(found, [{LOW: 0.1, HIGH: 0.4}, {LOW: 0.5}, {}, {LOW: 0.3}, {LOW: float("nan")}])
    found.fail("2")
    found.draw(5, 0)
    complete = TrialState.COMPLETE
    assert seen == [(complete, 0.3), (complete, 0.5), (complete, 0.3), (complete, 0.4), (TrialState.RUNNING, None)]


def test_a_model_draws_near_the_best(configs: dict[str, type]) -> None:
    found = model(Tpe(startup=3), configs)
    for number in range(40):
        ratio = 0.25 + 0.65 * number / 39
        found.enter(str(number), Suggestion("two", {"ratio": ratio, "batch": 64}))
        found.score(str(number), HIGH, -abs(ratio - 0.4))
    drawn = [float(found.draw(40, attempt)[0].values["ratio"]) for attempt in range(20)]
    assert np.mean(np.abs(np.array(drawn) - 0.4)) < 0.05


@pytest.mark.parametrize(
    "make", [TPESampler, partial(GPSampler, n_startup_trials=2), partial(TPESampler, multivariate=False), RandomSampler]
)
def test_any_sampler_of_optunas_draws_and_alike_with_the_same_seed(make: Callable[..., BaseSampler], configs: Any) -> None:
    one, two = (model(OwnOptuna(make), configs) for _ in range(2))
    for each in (one, two):
        told(each, [{HIGH: number / 10} for number in range(6)])
    assert one.draw(6, 0)[0] == two.draw(6, 0)[0]
    if make in (TPESampler, RandomSampler):
        assert one.draw(6, 0)[0] != one.draw(6, 1)[0]


def test_every_conditional_knob_has_a_place_of_its_own(configs: dict[str, type]) -> None:
    space = Space(configs)
    assert space.axes("one") == ("one.heat", "one.1-momentum", "one.kind", "one.depth")
    found = Model(space.only("one"), QuasiRandom(), 0)
    drawn = [found.draw(1, attempt)[0].values for attempt in range(64)]
    kinds = [values["kind"] for values in drawn]
    assert kinds.count("a") == kinds.count("b") == 32
    assert all(("depth" in values) == (values["kind"] == "b") for values in drawn)
    assert len({values["depth"] for values in drawn if "depth" in values}) == 4


def test_points_are_spread_more_evenly_than_by_lot(configs: dict[str, type]) -> None:
    """Of 16 points of a balanced sequence every sixteenth of a range holds one; by lot a third of them stay empty."""
    counts = {}
    for sampler in (QuasiRandom(), Random()):
        found = model(sampler, configs)
        ratios = np.array([float(found.draw(1, attempt)[0].values["ratio"]) for attempt in range(16)])
        counts[type(sampler)] = len(set(np.floor((ratios - 0.25) / 0.65 * 16).astype(int)))
    assert counts[QuasiRandom] == 16
    assert counts[Random] < 14


def test_a_sequence_goes_on_beyond_a_block(configs: dict[str, type]) -> None:
    found = model(QuasiRandom(), configs)
    drawn = [float(found.draw(number, 0)[0].values["ratio"]) for number in (1, 256, 257, 512)]
    assert len(set(drawn)) == 4


@given(st.floats(0, 1, exclude_max=True))
def test_a_share_of_the_way_through_a_range(share: float) -> None:
    assert within(CategoricalDistribution(("a", "b")), share) == ("a" if share < 0.5 else "b")
    assert within(FloatDistribution(1, 3), share) == pytest.approx(1 + 2 * share)
    assert within(FloatDistribution(0.01, 1, log=True), share) == pytest.approx(10 ** (2 * share - 2))
    assert within(IntDistribution(2, 4), share) == min(2 + int(3 * share), 4) or (3 * share) % 1 < 1e-9
    assert within(IntDistribution(1, 64, log=True), share) in range(1, 65)


def test_a_range_of_one_value_is_not_asked_for(configs: dict[str, type]) -> None:
    space = Space(configs, {"two.batch": 64, "two.ratio": Float(0.5, 0.5)}).only("two")
    assert dict(Model(space, Random(), 0).draw(1, 0)[0].values) == {"ratio": 0.5, "batch": 64}
