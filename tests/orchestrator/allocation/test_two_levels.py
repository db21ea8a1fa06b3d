"""Two levels: defaults first, the baseline's due, nothing twice, and a replayed search that goes on like the live one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.samplers import NSGAIISampler, TPESampler

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.allocation import Allocation, Field, Halving, MaxUcb, RoundRobin, Standings, TwoLevels
from orchestrator.engine.events import Ended, Scored, TrialStarted, decode, encode
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Rung, Status, Trial, TrialSpec
from orchestrator.samplers import OwnOptuna, QuasiRandom, Random, Sampler, Tpe
from search_spaces.domains import Choice, Float, UserError
from search_spaces.space import Space

EVOLUTION = OwnOptuna(partial(NSGAIISampler, population_size=4))
SAMPLERS: list[Sampler] = [Tpe(startup=3), Random(), QuasiRandom(), OwnOptuna(TPESampler), EVOLUTION]


ENCODERS = {"one": ("a", "b"), "two": ("c", "a", "d")}


class Search:
    """A proposer with the history that it learns from, told event by event."""

    def __init__(
        self, space: Space, allocation: Allocation | None = None, sampler: Sampler | None = None, seed: int = 0
    ) -> None:
        self.space, self.history = space, History()
        self.proposer = TwoLevels(space, seed, allocation or RoundRobin(), sampler or Tpe(startup=3))

    def ask(self, key: str, method: str | None = None) -> Configuration:
        found = self.proposer.propose(self.history, method)
        self.history.add(
            TrialStarted(TrialSpec(key, int(key), found.method, found.values, 0, origin=found.origin, encoder=found.encoder))
        )
        return found

    def report(self, key: str, epoch: int, value: float) -> None:
        rung = Rung(epoch, value, 10, 0, 1, "validation", None, 0.0)
        self.history.add(Scored(key, rung, Fidelity("epochs", epoch)))

    def end(self, key: str, status: Status, *values: float) -> None:
        for epoch, value in zip((1, 3), values, strict=False):
            self.report(key, epoch, value)
        self.history.add(Ended(key, status, ""))


def identity(found: Configuration) -> tuple[Any, ...]:
    return found.method, found.encoder, tuple(sorted(found.values.items()))


def goodness(found: Configuration) -> float:
    return seed_of(found.method, sorted(found.values.items())) / 2**63


def fate(found: Configuration) -> Status:
    drawn = seed_of("fate", found.method, sorted(found.values.items())) % 4
    return ("finished", "finished", "pruned", "failed")[drawn]  # type: ignore[return-value]


def ended(search: Search, key: str, found: Configuration) -> None:
    status, value = fate(found), goodness(found)
    search.end(key, status, *{"finished": (value, value + 0.1), "pruned": (value,)}.get(status, ()))


def test_defaults_come_first_in_the_order_of_the_methods(configs: dict[str, type]) -> None:
    for order in (configs, dict(reversed(configs.items()))):
        search = Search(Space(order), MaxUcb(floor=1))
        found = [search.ask(str(n)) for n in range(2)]
        assert [f.method for f in found] == list(order)
        assert all(f.origin == "defaults" and f.values == search.space.defaults(f.method).values for f in found)


def test_each_further_encoder_is_met_once_and_then_drawn(configs: dict[str, type]) -> None:
    search = Search(Space(configs, encoders=ENCODERS))
    found = []
    for number in range(24):
        found.append(search.ask(str(number)))
        search.end(str(number), "finished", 0.5, 0.6)
    assert [(f.method, f.encoder) for f in found[:2]] == [("one", "a"), ("two", "c")], "each method with its first"
    assert [f.encoder for f in found[2:4]] == ["b", "d"]
    assert [f.origin for f in found[:5]] == ["defaults"] * 4 + ["sampled"]
    assert all(f.encoder in ENCODERS[f.method] for f in found)
    assert {f.encoder for f in found[4:]} == {"a", "b", "c", "d"}
    assert len({identity(f) for f in found}) == 24


def test_a_method_that_fails_with_an_encoder_twice_is_not_tried_with_it_again(configs: dict[str, type]) -> None:
    search = Search(Space(configs, encoders={"one": ("a", "b"), "two": ("a", "b")}))
    failed = []
    for number in range(30):
        found = search.ask(str(number))
        if (found.method, found.encoder) == ("two", "b"):
            failed.append(number)
            search.end(str(number), "failed")
        else:
            search.end(str(number), "finished", 0.5, 0.6)
    assert len(failed) == 2


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    seed=st.integers(0, 99),
    allocation=st.sampled_from([RoundRobin(), Halving(trials=2, keep=1), MaxUcb(floor=2)]),
    sampler=st.sampled_from(SAMPLERS),
    encoders=st.sampled_from([{}, ENCODERS]),
)
def test_a_replayed_search_goes_on_like_the_live_one(
    configs: dict[str, type],
    data: st.DataObject,
    seed: int,
    allocation: Allocation,
    sampler: Sampler,
    encoders: Mapping[str, tuple[str, ...]],
) -> None:
    """Whatever had ended and whatever was still running when the journal was read, the next suggestions are the same."""
    live = Search(Space(configs, encoders=encoders), allocation, sampler, seed)
    asked: dict[str, Configuration] = {}
    done: set[str] = set()
    for n in range(data.draw(st.integers(2, 18))):
        if data.draw(st.booleans()):
            # A suggestion that nothing comes of leaves no trace.
            live.proposer.propose(live.history)
        asked[str(n)] = live.ask(str(n))
        while len(asked) - len(done) > data.draw(st.integers(0, 2)):
            key = data.draw(st.sampled_from(sorted(asked.keys() - done)))
            done.add(key)
            ended(live, key, asked[key])
    replayed = Search(Space(configs, encoders=encoders), allocation, sampler, seed)
    for event in live.history.events:
        replayed.history.add(decode(encode(event).encode()))
    for key in ("100", "101", "102"):
        one, two = live.ask(key), replayed.ask(key)
        assert identity(one) == identity(two)
        if data.draw(st.booleans()):
            ended(live, key, one)
            ended(replayed, key, two)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_searches_alike_and_another_does_not(configs: dict[str, type], sampler: Sampler) -> None:
    courses = []
    for seed in (5, 5, 6):
        search = Search(Space(configs), sampler=sampler, seed=seed)
        courses.append([search.ask(str(n)) for n in range(8)])
    assert courses[0] == courses[1]
    assert courses[0][2:] != courses[2][2:]


def test_an_evolution_remembers_what_it_wrote_down(configs: dict[str, type]) -> None:
    """A sampler that keeps notes in its trials finds them, so that later generations descend from the earlier ones."""
    search = Search(Space({"two": configs["two"]}), sampler=EVOLUTION)
    for n in range(16):
        search.ask(str(n))
        search.end(str(n), "finished", n / 100)
    notes = [told.frozen.system_attrs for told in search.proposer.models["two"].told.values()]
    generations = {value for note in notes for key, value in note.items() if "generation" in key}
    assert len(generations) > 1, notes


def test_no_configuration_comes_twice_and_what_is_tried_out_gets_no_trial(configs: dict[str, type]) -> None:
    fixed = {"one.heat": 0.5, "one.momentum": 0.9, "one.kind": "a", "two.ratio": 0.5}
    search = Search(Space(configs, {**fixed, "two.batch": Choice((32, 64, 128, 256))}))
    found = [search.ask(str(n)) for n in range(5)]
    assert len({identity(f) for f in found}) == 5
    assert Counter(f.method for f in found) == {"one": 1, "two": 4}
    # Then there is nothing new, and the search goes on all the same.
    assert identity(search.ask("5")) in {identity(f) for f in found}


def test_it_suggests_for_one_method_where_asked(configs: dict[str, type]) -> None:
    search = Search(Space(configs))
    assert [search.ask(str(n), "two").method for n in range(4)] == ["two"] * 4
    assert search.ask("4") == Configuration("one", search.space.defaults("one").values, "defaults")


class Always(Allocation):
    """Names the same method whatever happens."""

    def __init__(self, method: str) -> None:
        self.method = method

    def next(self, field: Field) -> str:
        return self.method

    def why(self, field: Field) -> str:
        return "no reason"


def test_an_allocation_that_names_no_method_on_offer_is_refused(configs: dict[str, type]) -> None:
    search = Search(Space(configs), Always("three"))
    search.ask("0"), search.ask("1")
    with pytest.raises(UserError, match=r"Always.next must name one of the methods that it is offered, one, two, got 'three'"):
        search.ask("2")


def test_the_baseline_gets_as_many_trials_as_the_leader_had_when_it_overtook_it(configs: dict[str, type]) -> None:
    one, two = configs.values()
    search = Search(Space({"supervised": one, "two": two}), Always("two"), Random())
    tried = []
    for n in range(20):
        found = search.ask(str(n))
        tried.append(found.method)
        # Seven trials of the other method stay below, the eighth is better.
        others = tried.count("two")
        search.end(str(n), "finished", *([0.5] * 2 if found.method == "supervised" else [0.4 if others < 8 else 0.6] * 2))
    assert tried[:9] == ["supervised", *["two"] * 8]
    assert tried[9:16] == ["supervised"] * 7
    assert tried[16:] == ["two"] * 4


def test_a_baseline_that_only_fails_does_not_use_up_the_search(configs: dict[str, type]) -> None:
    one, two = configs.values()
    search = Search(Space({"supervised": one, "two": two}), Always("two"), Random())
    tried = []
    for n in range(30):
        found = search.ask(str(n))
        tried.append(found.method)
        if found.origin == "defaults" or found.method == "two":
            search.end(str(n), "finished", *[0.4 + 0.01 * n] * 2)
        else:
            search.end(str(n), "failed")
    assert tried.count("supervised") < 10


def test_standings_by_hand() -> None:
    found = Standings(["a", "b", "c"])
    for number, (method, scores) in enumerate([("a", {1: 0.3, 3: 0.2}), ("b", {1: 0.4}), ("a", {1: 0.1, 3: 0.5}), ("c", {})]):
        found.add(TrialStarted(TrialSpec(str(number), number, method, {}, 0)))
        for epoch, value in scores.items():
            rung = Rung(epoch, value, 1, value, value, "validation", None, 0.0)
            found.add(Scored(str(number), rung, Fidelity("epochs", epoch)))
    found.add(Ended("3", "failed", ""))
    a, c = found.of["a"], found.of["c"]
    low, high = Fidelity("epochs", 1), Fidelity("epochs", 3)
    assert (a.started, a.scored, a.best, a.worst) == (2, 2, {low: 0.3, high: 0.5}, {low: 0.1, high: 0.2})
    assert (c.started, c.scored, c.failed) == (1, 0, 1)
    field = Field(0, ("a", "b", "c"), found.of, None)
    assert field.compared("ab") == {"a": 0.3, "b": 0.4}, "b has not reached the higher rung"
    assert field.compared("a") == {"a": 0.5}
    assert field.compared("abc") == {"a": 0.3, "b": 0.4}, "c has no score"
    assert field.compared("c") == {}
    assert field.behind("abc") == "b"


def test_earlier_studies_inform_the_search_and_do_not_take_the_defaults_place(configs: dict[str, type]) -> None:
    def record(number: int, method: str, values: Mapping[str, Any], score: float) -> Trial:
        rungs = [Rung(1, score, 10, 0, 1, "validation", None, 0.0)]
        return Trial(TrialSpec(str(number), number, method, values, 0), "finished", rungs=rungs)

    space = Space(configs, {"two.batch": 64})
    past = [record(n, "two", {"ratio": n / 40, "batch": 64}, -abs(n / 40 - 0.7)) for n in range(41)]
    foreign = [record(50, "three", {"a": 1}, 0.5), Trial(TrialSpec("y", 1, "two", {}, 0), "finished")]
    seeded = Search(space, sampler=Tpe(startup=3))
    assert seeded.proposer.seed_from([*past, *foreign]) == 41
    assert [seeded.ask(str(n)).origin for n in range(2)] == ["defaults"] * 2
    found = [float(seeded.ask(str(n), "two").values["ratio"]) for n in range(2, 12)]
    assert sum(abs(ratio - 0.7) < 0.15 for ratio in found) >= 7, found


def test_earlier_values_outside_this_studys_range_are_left_out(configs: dict[str, type]) -> None:
    rungs = [Rung(1, 0.5, 10, 0, 1, "validation", None, 0.0)]
    search = Search(Space(configs, {"two.ratio": Float(0.5, 0.6)}))
    search.proposer.seed_from([Trial(TrialSpec("0", 0, "two", {"ratio": 0.3, "batch": 64}, 0), "finished", rungs=rungs)])
    (told,) = search.proposer.models["two"].told.values()
    assert told.frozen.params == {"two.log2(batch)": 6}


@dataclass(frozen=True)
class Counts(Sampler):
    """Notes how many trials it was told of."""

    seen: list[int]

    def optuna(self, draw: Any) -> Any:
        self.seen.append(draw.scored)
        return Random().optuna(draw)


def test_the_latest_200_trials_of_a_method_are_modelled(configs: dict[str, type]) -> None:
    sampler = Counts([])
    search = Search(Space({"two": configs["two"]}), sampler=sampler)
    for n in range(230):
        search.ask(str(n))
        search.end(str(n), "finished", 0.5)
    assert sampler.seen[:199] == list(range(1, 200))
    assert set(sampler.seen[199:]) == {200}
