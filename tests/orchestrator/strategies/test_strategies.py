"""Every strategy by name: the contract, who goes on, and what may be spent."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.budgets import Ledger, Trials
from orchestrator.engine.events import Ended, Reached, Scored, SegmentStarted, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Rung, Segment, TrialSpec
from orchestrator.strategies import (
    STRATEGIES,
    Asha,
    Continue,
    Done,
    Hyperband,
    NoStopping,
    OneEpochThenTopK,
    Problem,
    Start,
    Stop,
    Strategy,
    Wait,
)
from orchestrator.strategies.asha import WAITING
from orchestrator.study import Study
from orchestrator.testing import check_strategy, simulate

RUNGS = tuple(Fidelity("epochs", epoch) for epoch in (1, 3, 9))
SMALL: dict[str, Any] = {"data": "digits", "methods": ["supervised", "mixup", "simclr"], "epochs": 9}


def pretend(configuration: Configuration, fidelity: Fidelity, seed: int) -> tuple[float, float]:
    drawn = seed_of(configuration.method, sorted(configuration.values.items())) / 2**63
    return 0.5 + 0.3 * drawn + 0.01 * fidelity.amount, 6 * fidelity.amount


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("allocation", "slots"), [("round_robin", 1), ("halving", 3)])
def test_each_keeps_the_contract(name: str, slots: int, allocation: str) -> None:
    history = check_strategy(STRATEGIES[name](), Study(**SMALL, trials=30, allocation=allocation), pretend, slots)
    assert len(history.search()) == 30
    defaults = [t for t in history.search() if t.spec.origin == "defaults"]
    assert [t.status for t in defaults] == ["finished"] * 3, "defaults always train to the end"
    finished = [t for t in history.search() if t.status == "finished"]
    if name == "none":
        assert len(finished) == 30
        assert all(len(trial.rungs) == 1 for trial in finished), "no rung on the way"
    else:
        assert 3 < len(finished) < 20
    if name == "one_epoch_then_top_k":
        assert len(finished) == 3 + 5


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("budget", [{"minutes": 20}, {"epochs": 150}])
def test_each_stays_inside_a_budget_and_leaves_enough_for_the_end(name: str, budget: dict[str, float]) -> None:
    study = Study(**SMALL, budget=budget, strategy=name, allocation="round_robin", selection={"top": 2, "folds": 2})
    history = History(simulate(study, pretend))
    assert history.search_ended is not None
    assert "budget" in history.search_ended.reason
    spent = history.elapsed / 60 if "minutes" in budget else history.epochs_trained()
    assert 0.6 * next(iter(budget.values())) < spent <= next(iter(budget.values())) + 2
    best = [t for t in history.search() if t.status == "finished" and t.spec.origin != "defaults"]
    assert best, "the budget must reach to the top"


class Fixed:
    """Proposes the same configuration again and again."""

    def propose(self, history: History, method: str | None = None) -> Configuration:
        return Configuration("m", {})


class Table:
    """Plays a strategy by hand: trials with given scores, all waiting."""

    def __init__(self, strategy: Strategy, trials: int, rungs: tuple[Fidelity, ...] = RUNGS) -> None:
        self.problem = Problem(0, ("m",), rungs, {}, Fixed(), Ledger((Trials(trials),)))
        self.strategy, self.history, self.started = strategy, History(), 0

    def start(self, origin: Any = "sampled") -> str:
        key = f"{self.started:04d}"
        self.history.add(TrialStarted(TrialSpec(key, self.started, "m", {}, 0, origin=origin)))
        self.history.add(SegmentStarted(Segment(key, self.problem.rungs[0])))
        self.started += 1
        return key

    def reach(self, key: str, at: Fidelity, value: float) -> None:
        self.history.add(Scored(key, Rung(at.amount, value, 1, value, value, "validation", None, 0.0), at))
        self.history.add(Reached(key, at, f"{key}.pt"))

    def waits(self, value: float, origin: Any = "sampled") -> str:
        key = self.start(origin)
        self.reach(key, RUNGS[0], value)
        return key

    def next(self) -> Any:
        return self.strategy.next(self.problem, self.history)


def test_asha_promotes_the_best_of_three() -> None:
    table = Table(Asha(), 100)
    for value in (0.3, 0.2):
        table.waits(value)
        assert isinstance(table.next(), Start), "of two none is the best of three"
    table.waits(0.1)
    assert table.next() == Continue("0000", RUNGS[1], RUNGS[2:])
    table.history.add(SegmentStarted(Segment("0000", RUNGS[1])))
    for value in (0.25, 0.05):
        table.waits(value)
        assert isinstance(table.next(), Start), "one of five is promoted, and has been"
    table.waits(0.01)
    assert table.next() == Continue("0003", RUNGS[1], RUNGS[2:])


def test_asha_against_a_plain_loop_over_all_rungs() -> None:
    """At the end of a search no trial that is among the best third at its rung waits, and none above it has been promoted."""
    history = History(simulate(Study(**SMALL, trials=60, strategy="asha", allocation="round_robin"), pretend))
    for rung, above in ((RUNGS[0], RUNGS[1]), (RUNGS[1], RUNGS[2])):
        scores = history.scores_at(rung)
        best = sorted(scores, key=lambda key: (-scores[key], key))[: len(scores) // 3]
        gone_on = {key for key in history.scores_at(above) if history.trials[key].spec.origin != "defaults"}
        missing = {key for key in best if history.trials[key].spec.origin != "defaults"} - gone_on
        assert not missing
        # Some were among the best third when they went on, and later no more.
        assert len(gone_on) <= len(scores) / 2


def test_asha_prefers_the_higher_rung_and_waits_for_what_is_under_way() -> None:
    table = Table(Asha(2), 4)
    keys = [table.waits(value) for value in (0.9, 0.8, 0.2, 0.1)]
    for key, value in zip(keys[:2], (0.5, 0.6), strict=True):
        table.reach(key, RUNGS[1], value)
    assert table.next() == Continue("0001", RUNGS[2], ())
    table.history.add(SegmentStarted(Segment("0001", RUNGS[2])))
    assert isinstance(table.next(), Wait), "no further trial may start, and one is under way"
    table.history.add(Ended("0001", "finished", ""))
    assert isinstance(table.next(), Done)


def test_asha_keeps_few_waiting_and_none_without_a_score() -> None:
    table = Table(Asha(), 1000)
    for number in range(WAITING):
        table.waits(0.5 - number / 1000)
    for key in [t.spec.key for t in table.history.undecided()[: WAITING // 3]]:
        table.history.add(SegmentStarted(Segment(key, RUNGS[1])))
    assert isinstance(table.next(), Start)
    for number in range(WAITING, WAITING + WAITING // 3 + 1):
        table.waits(0.1 - number / 1000)
    table.waits(float("nan"))
    last = table.history.undecided()[-1].spec.key
    assert table.next() == Stop(last, "its score at 1 epoch is no finite number")
    table.history.add(Ended(last, "pruned", ""))
    while isinstance(decision := table.next(), Continue):
        table.history.add(SegmentStarted(Segment(decision.key, RUNGS[1])))
    worst = min(table.history.undecided(), key=lambda t: t.value or 0.0).spec.key
    assert len(table.history.undecided()) <= WAITING or decision == Stop(worst, f"{WAITING} better ones wait at 1 epoch")


def test_hyperband_begins_its_brackets_at_every_rung_in_turn() -> None:
    table = Table(Hyperband(), 100)
    found = [table.strategy.bracket(table.problem, number) for number in range(40)]  # type: ignore[attr-defined]
    sizes = Counter((b.begin, b.end - b.begin, b.first.amount) for b in found)
    # ceil(3 / 3 * 9), ceil(3 / 2 * 3) and 3, as in the paper's algorithm for R = 9.
    assert list(sizes)[:6] == [(0, 9, 1), (9, 5, 3), (14, 3, 9), (17, 9, 1), (26, 5, 3), (31, 3, 9)]


def test_hyperband_halves_each_bracket_by_itself() -> None:
    history = History(simulate(Study(**SMALL, trials=3 + 34, strategy="hyperband", allocation="round_robin"), pretend, slots=2))
    problem = Table(Hyperband(), 100).problem
    members = defaultdict(list)
    for trial in history.search():
        members[Hyperband().bracket(problem, trial.spec.trial)].append(trial)
    for bracket, trials in members.items():
        sampled = [t for t in trials if t.spec.origin != "defaults"]
        for rung, above in pairwise(RUNGS):
            there = [t for t in sampled if t.spec.key in history.scores_at(rung)]
            on = [t for t in sampled if t.spec.key in history.scores_at(above)] if rung.amount >= bracket.first.amount else []
            if not there or rung.amount < bracket.first.amount:
                continue
            assert len(on) == max(1, len(there) // 3)
            scores = history.scores_at(rung)
            assert min(scores[t.spec.key] for t in on) >= max(
                (scores[t.spec.key] for t in there if t not in on), default=0.0
            ), bracket


def test_one_epoch_compares_all_where_all_may_be_judged() -> None:
    table = Table(OneEpochThenTopK(top=2), 5)
    keys = [table.waits(value) for value in (0.1, 0.5)]
    assert table.next() == Start(Configuration("m", {}), RUNGS[0], RUNGS[1:])
    table.waits(0.3)
    assert table.next() == Stop(keys[0], "not among the best 2 at 1 epoch")
    table.history.add(Ended(keys[0], "pruned", ""))
    under_way = table.start()
    table.waits(0.2)
    table.history.add(Ended("0004", "pruned", ""))
    assert isinstance(table.next(), Wait), "one has not told its score yet"
    table.reach(under_way, RUNGS[0], 0.01)
    assert table.next() == Stop(under_way, "not among the best 2 at 1 epoch")
    table.history.add(Ended(under_way, "pruned", ""))
    assert table.next() == Continue(keys[1], RUNGS[2])


def test_without_stopping_all_go_to_the_top() -> None:
    table = Table(NoStopping(), 2)
    assert table.next() == Start(Configuration("m", {}), RUNGS[2])
    table.start(), table.start()
    assert isinstance(table.next(), Wait)
