"""The search: defaults first, ends told as they were, and a replayed search that goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.allocation import Joint
from orchestrator.engine.events import Ended, Scored, TrialStarted, decode, encode
from orchestrator.engine.history import History
from orchestrator.engine.records import Rung, Status, Trial, TrialSpec
from orchestrator.samplers.frozen import frozen
from search_spaces.domains import Choice, Float
from search_spaces.space import Space, Suggestion


class Search:
    """A sampler with the history that it learns from, told event by event."""

    def __init__(self, space: Space, seed: int, startup: int | None) -> None:
        self.space, self.sampler, self.history = space, Joint(space, seed, startup), History()

    def ask(self, key: str, method: str | None = None) -> Suggestion:
        found = self.sampler.propose(self.history, method)
        spec = TrialSpec(key, int(key), found.method, found.values, 0, origin=found.origin, encoder=found.encoder)
        self.history.add(TrialStarted(spec))
        return Suggestion(found.method, found.values, found.encoder)

    def report(self, key: str, epoch: int, value: float) -> None:
        self.history.add(Scored(key, Rung(epoch, value, 10, 0, 1, "validation", None, 0.0), Fidelity("epochs", epoch)))

    def tell(self, key: str, status: Status) -> None:
        self.history.add(Ended(key, status, ""))

    def told(self) -> dict[str, FrozenTrial]:
        """What Optuna was told of each trial."""
        self.sampler.propose(self.history)
        return {t.user_attrs["key"]: t for t in self.sampler.study.trials if "key" in t.user_attrs}


def make(
    configs: dict[str, type], seed: int = 0, startup: int | None = 3, overrides: Mapping[str, Any] | None = None
) -> Search:
    return Search(Space(configs, overrides), seed, startup)


def goodness(suggestion: Suggestion, epoch: int) -> float:
    return seed_of(suggestion.method, sorted(suggestion.values.items())) / 2**63 + epoch / 100


def fate(suggestion: Suggestion) -> Status:
    drawn = seed_of("fate", suggestion.method, sorted(suggestion.values.items())) % 4
    return ("finished", "finished", "pruned", "failed")[drawn]


def end(search: Search, key: str, suggestion: Suggestion, status: Status | None = None) -> Trial:
    """Plays a trial to its end and gives its record."""
    status = status or fate(suggestion)
    for epoch in {"finished": (1, 3), "pruned": (1,), "failed": ()}[status]:
        search.report(key, epoch, goodness(suggestion, epoch))
    search.tell(key, status)
    return search.history.trials[key]


def identity(suggestion: Suggestion) -> tuple[Any, ...]:
    return suggestion.method, tuple(sorted(suggestion.values.items()))


def test_defaults_come_first_in_the_order_of_the_methods(configs: dict[str, type]) -> None:
    search = make(configs)
    assert identity(search.ask("0")) == identity(search.space.defaults("one"))
    assert identity(search.ask("1")) == identity(search.space.defaults("two"))
    turned = make(dict(reversed(configs.items())))
    assert [turned.ask(str(i)).method for i in range(2)] == ["two", "one"]


def test_ends_are_told_as_they_were_and_nothing_is_left_running(configs: dict[str, type]) -> None:
    search = make(configs)
    for i, status in enumerate(("finished", "pruned", "failed", "failed")):
        suggestion = search.ask(str(i))
        end(search, str(i), suggestion, status)  # type: ignore[arg-type]
    named = search.told()
    assert [named[str(i)].state for i in range(4)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.FAIL,
    ]
    assert list(named["0"].intermediate_values) == [1, 3]
    assert named["0"].value == named["0"].intermediate_values[3]
    assert list(named["1"].intermediate_values) == [1]
    assert named["2"].intermediate_values == {}
    assert all(t.state.is_finished() for t in search.sampler.study.trials)


def test_a_failed_trial_keeps_its_scores_on_the_way(configs: dict[str, type]) -> None:
    search = make(configs)
    search.ask("0")
    search.report("0", 1, 0.5)
    search.tell("0", "failed")
    told = search.told()["0"]
    assert (told.state, told.intermediate_values, told.value) == (TrialState.FAIL, {1: 0.5}, None)


def test_a_rung_reported_again_counts_once_without_a_warning(configs: dict[str, type]) -> None:
    search = make(configs)
    search.ask("0")
    search.report("0", 1, 0.5)
    search.report("0", 1, 0.5)
    search.tell("0", "pruned")
    assert search.told()["0"].intermediate_values == {1: 0.5}


def run(search: Search, trials: int, start: int = 0) -> tuple[list[Suggestion], list[Trial]]:
    suggestions, records = [], []
    for i in range(start, trials):
        suggestions.append(search.ask(str(i)))
        records.append(end(search, str(i), suggestions[-1]))
    return suggestions, records


def test_the_same_seed_searches_alike_and_another_does_not(configs: dict[str, type]) -> None:
    one, two, other = (run(make(configs, seed), 14)[0] for seed in (5, 5, 6))
    assert one == two
    assert one[2:] != other[2:]


def test_no_configuration_comes_twice(configs: dict[str, type]) -> None:
    """A space of 5 configurations is exhausted without a repetition."""
    fixed = {"one.heat": 0.5, "one.momentum": 0.9, "one.kind": "a", "two.ratio": 0.5}
    search = make(configs, overrides={**fixed, "two.batch": Choice((32, 64, 128, 256))})
    suggestions, _ = run(search, 5)
    assert len({identity(s) for s in suggestions}) == 5
    # Then there is nothing new, and the search goes on all the same.
    assert identity(search.ask("5")) in {identity(s) for s in suggestions}


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seed=st.integers(0, 99))
def test_a_replayed_search_goes_on_like_the_live_one(configs: dict[str, type], data: st.DataObject, seed: int) -> None:
    """Whatever had ended and whatever was still running when the journal was read, the next suggestions are the same."""
    live = make(configs, seed)
    asked: dict[str, Suggestion] = {}
    ended: dict[str, Trial] = {}
    for i in range(data.draw(st.integers(2, 16))):
        asked[str(i)] = live.ask(str(i))
        # At most two run at a time; any of them may end.
        while len(asked) - len(ended) > data.draw(st.integers(0, 2)):
            key = data.draw(st.sampled_from(sorted(asked.keys() - ended.keys())))
            ended[key] = end(live, key, asked[key])
    replayed = make(configs, seed)
    for event in live.history.events:
        replayed.history.add(decode(encode(event).encode()))
    for key in ("100", "101", "102"):
        one, two = live.ask(key), replayed.ask(key)
        assert identity(one) == identity(two)
        if data.draw(st.booleans()):
            end(live, key, one)
            end(replayed, key, two)


def test_earlier_studies_inform_the_search_and_do_not_take_the_defaults_place(configs: dict[str, type]) -> None:
    _, records = run(make(configs, seed=3), 14)
    useful = [r for r in records if r.status != "failed"]
    foreign = Trial(TrialSpec("x", 0, "three", {"a": 1}, 0), "finished", rungs=useful[0].rungs)
    fresh, seeded = make(configs), make(configs)
    assert seeded.sampler.seed_from([*records, foreign, Trial(TrialSpec("y", 1, "one", {}, 0))]) == len(useful)
    states = [t.state for t in seeded.sampler.study.trials]
    assert states.count(TrialState.COMPLETE) == sum(r.status == "finished" for r in useful)
    assert [seeded.ask(str(i)).method for i in range(2)] == ["one", "two"]
    fresh.ask("0"), fresh.ask("1")
    assert seeded.ask("2") != fresh.ask("2")


def test_earlier_values_outside_this_studys_range_are_left_out(configs: dict[str, type]) -> None:
    record = Trial(
        TrialSpec("0", 0, "two", {"ratio": 0.3, "batch": 64}, 0),
        "finished",
        rungs=[Rung(1, 0.5, 10, 0, 1, "validation", None, 0)],
    )
    search = make(configs, overrides={"two.ratio": Float(0.5, 0.6)})
    search.sampler.seed_from([record])
    assert search.sampler.study.trials[0].params == {"method": "two", "two.log2(batch)": 6}


def test_frozen_trials_are_what_optunas_own_tools_read(configs: dict[str, type]) -> None:
    search = make(configs)
    _, records = run(search, 8)
    study = optuna.create_study(direction="maximize")
    study.add_trials([frozen(search.space, r) for r in records])
    assert [t.state.is_finished() for t in study.trials] == [True] * 8
    best = max((r for r in records if r.status == "finished"), key=lambda r: r.value or 0)
    assert study.best_trial.user_attrs["key"] == best.spec.key
    assert study.best_value == best.value
    for record, stored in zip(records, study.trials, strict=True):
        assert stored.params["method"] == record.spec.method
        assert stored.intermediate_values == {r.epoch: r.value for r in record.rungs}


@pytest.mark.parametrize("startup", [None, 4])
def test_the_models_start_after_the_start_up(configs: dict[str, type], startup: int | None) -> None:
    assert make(configs, startup=startup).sampler.startup == (startup or 10)


def test_the_baseline_is_tuned_with_as_many_trials_as_the_others_get(configs: dict[str, type]) -> None:
    """Though it always fares worst, so that the model would soon leave it alone; another method has no such right."""
    one, two = configs.values()
    found = {}
    for names in (("supervised", "two"), ("worst", "two")):
        search = make(dict(zip(names, (one, two), strict=True)), startup=2)
        tried: list[str] = []
        for n in range(24):
            suggestion = search.ask(str(n))
            search.report(str(n), 1, 0.0 if suggestion.method == names[0] else 1.0 + n)
            search.tell(str(n), "finished")
            tried.append(suggestion.method)
            if names[0] == "supervised":
                assert 2 * tried.count("supervised") >= len(tried)
        found[names[0]] = tried.count(names[0])
    assert found["supervised"] in (12, 13)
    assert found["worst"] < 12


def test_a_baseline_with_nothing_left_to_try_is_not_tried_again(configs: dict[str, type]) -> None:
    one, two = configs.values()
    space = Space({"supervised": one, "two": two})
    fixed = {f"supervised.{knob}": value for knob, value in space.defaults("supervised").values.items()}
    search = make({"supervised": one, "two": two}, overrides=fixed)
    asked = [search.ask(str(n)).method for n in range(10)]
    assert asked.count("supervised") == 1


def test_it_suggests_for_one_method_where_asked(configs: dict[str, type]) -> None:
    search = make(configs, startup=2)
    assert identity(search.ask("0", "two")) == identity(search.space.defaults("two"))
    end(search, "0", search.space.defaults("two"), "finished")
    for n in range(1, 9):
        suggestion = search.ask(str(n), "two")
        assert suggestion.method == "two"
        end(search, str(n), suggestion, "finished")
    assert identity(search.ask("9")) == identity(search.space.defaults("one")), "its defaults have not been tried"


ENCODERS = {"one": ("b", "c"), "two": ("a", "b", "c", "d")}


def compare(configs: dict[str, type], seed: int = 0, encoders: Mapping[str, Any] = ENCODERS) -> Search:
    return Search(Space(configs, encoders=encoders), seed, None)


def score(search: Search, key: str, value: float) -> None:
    search.report(key, 1, value)
    search.tell(key, "finished")


def test_each_further_encoder_comes_once_with_the_defaults_of_the_best_method(configs: dict[str, type]) -> None:
    search = compare(configs)
    first = [search.ask("0"), search.ask("1")]
    assert [(s.method, s.encoder) for s in first] == [("one", "b"), ("two", "a")]
    score(search, "0", 0.9)
    score(search, "1", 0.5)
    found = [search.ask("2"), search.ask("3")]
    # Only "two" may be tried with d, whatever it has scored.
    assert found == [search.space.defaults("one", "c"), search.space.defaults("two", "d")]
    assert [search.history.trials[key].spec.origin for key in "0123"] == ["defaults"] * 4
    later = search.ask("4")
    assert search.history.trials["4"].spec.origin == "sampled"
    assert later.encoder in ENCODERS[later.method]
    assert search.space.first_trials == 4


def test_an_encoder_whose_first_trial_fails_is_tried_with_one_more_method(configs: dict[str, type]) -> None:
    search = compare(configs, encoders={"one": ("a", "b"), "two": ("a", "b")})
    for key, value in (("0", 0.2), ("1", 0.3)):
        search.ask(key)
        score(search, key, value)
    assert search.ask("2") == search.space.defaults("two", "b"), "the better method first"
    search.tell("2", "failed")
    assert search.ask("3") == search.space.defaults("one", "b")
    search.tell("3", "failed")
    search.ask("4")
    assert search.history.trials["4"].spec.origin == "sampled", "and no third"


def test_an_encoder_under_way_is_not_tried_again(configs: dict[str, type]) -> None:
    search = compare(configs, encoders={"one": ("a", "b"), "two": ("a", "b")})
    origins = []
    for key in "0123":
        search.ask(key)
        origins.append(search.history.trials[key].spec.origin)
    assert origins == ["defaults", "defaults", "defaults", "sampled"]


def test_a_method_that_fails_with_an_encoder_time_and_again_is_no_longer_tried_with_it(configs: dict[str, type]) -> None:
    search = compare(configs, encoders={"one": ("a", "b"), "two": ("a", "b")})
    failed = []
    for number in range(40):
        suggestion = search.ask(str(number))
        if (suggestion.method, suggestion.encoder) == ("two", "b"):
            failed.append(number)
            search.tell(str(number), "failed")
        else:
            score(search, str(number), 0.5)
    assert len(failed) == 2
    assert {(t.spec.method, t.spec.encoder) for t in search.history.search()[max(failed) + 1 :]} == {
        *(("one", "a"), ("one", "b"), ("two", "a")),
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_model_learns_which_encoder_is_good(configs: dict[str, type], seed: int) -> None:
    search = compare(configs, seed, {"one": ("a", "b", "c"), "two": ("a", "b", "c")})
    worth = {"a": 0.2, "b": 0.3, "c": 0.8}
    for number in range(40):
        suggestion = search.ask(str(number))
        score(search, str(number), worth[suggestion.encoder] + goodness(suggestion, 0) / 20)
    late = [search.history.trials[str(number)].spec.encoder for number in range(20, 40)]
    assert late.count("c") > 10, "chance would be 7"


def test_a_comparison_of_encoders_is_replayed_to_the_same_suggestions(configs: dict[str, type]) -> None:
    live = compare(configs)
    for number in range(20):
        end(live, str(number), live.ask(str(number)))
    read = History([decode(encode(event).encode()) for event in live.history.events])
    fresh = Joint(Space(configs, encoders=ENCODERS), 0)
    assert fresh.propose(read) == live.sampler.propose(live.history)


def test_optuna_knows_the_encoder_of_a_trial(configs: dict[str, type]) -> None:
    space = Space(configs, encoders=ENCODERS)
    values = space.defaults("two").values
    trial = Trial(
        TrialSpec("0", 0, "two", values, 0, encoder="c"), "finished", rungs=[Rung(1, 0.5, 9, 0, 1, "validation", None, 0)]
    )
    assert frozen(space, trial).params["encoder"] == "c"
    few = Trial(TrialSpec("0", 0, "one", {}, 0, encoder="c"), "finished", rungs=trial.rungs)
    assert frozen(space, few).params["encoder@b|c"] == "c"
    # Another study's encoder leaves only what its knobs tell.
    foreign = Trial(TrialSpec("0", 0, "two", values, 0, encoder="z"), "finished", rungs=trial.rungs)
    assert not any(name.startswith("encoder") for name in frozen(space, foreign).params)
    assert frozen(space, foreign).params["two.ratio"] == values["ratio"]
