"""Budgets, each on a simulated study: what is spent, that it ends the search, and what is kept for the selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.budgets import CpuHours, Epochs, GpuHours, Labels, Ledger, Minutes, Resources, Trials
from orchestrator.engine.events import Ended, Opened, Scored, SearchEnded, Started, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Rung, Trial, TrialSpec
from orchestrator.strategies import Decision, Done, Fork, Problem, Start, Strategy, Wait
from orchestrator.study import Study
from orchestrator.testing import check_budget, simulate
from search_spaces.domains import UserError

BASE: dict[str, Any] = {"data": "digits", "methods": ["supervised", "simclr"], "epochs": 9, "selection": {"top": 2, "folds": 2}}
EPOCH = 6.0
"""Seconds of a pretended epoch."""


def pretend(configuration: Configuration, fidelity: Fidelity, seed: int) -> tuple[float, float]:
    drawn = seed_of(configuration.method, sorted(configuration.values.items()), seed) / 2**63
    return 0.5 + 0.3 * drawn + 0.01 * fidelity.amount, EPOCH * fidelity.amount


def test_minutes_keep_the_time_of_a_test_that_is_larger_than_what_validates() -> None:
    trial = Trial(TrialSpec("0000", 0, "simclr", {}, 0))
    rung = Rung(1, 0.5, 20, 0.4, 0.6, "validation", None, 6.0)
    history = History([TrialStarted(trial.spec), Scored("0000", rung, Fidelity("epochs", 1))])
    each = (Minutes(10).testing(20) if larger else Minutes(10) for larger in (True, False))
    larger, usual = (budget.closing(history) for budget in each)
    assert larger - usual == pytest.approx(17 * 6 / 60)
    assert Minutes(10).testing(0.1) == Minutes(10)
    assert Trials(3).testing(20) == Trials(3)


def test_a_huge_test_leaves_most_of_the_minutes_to_the_search() -> None:
    trial = Trial(TrialSpec("0000", 0, "simclr", {}, 0))
    rung = Rung(1, 0.5, 20, 0.4, 0.6, "validation", None, 6.0)
    history = History([TrialStarted(trial.spec), Scored("0000", rung, Fidelity("epochs", 1))])
    kept = [Minutes(10).testing(scorings).closing(history) for scorings in (0, 500)]
    assert kept[1] - kept[0] == pytest.approx(0.2 * 10 - 3 * 6 / 60)


def test_another_model_is_tested_while_the_clock_bears_it() -> None:
    spec = TrialSpec("0000", 0, "simclr", {}, 0)
    scored = Scored("0000", Rung(1, 0.5, 20, 0.4, 0.6, "validation", None, 3.0), Fidelity("epochs", 1), time=90.0)
    history = History([Opened(0.0, time=0.0), TrialStarted(spec, time=1.0), scored])
    ends = history.elapsed / 60 + Minutes(10).testing(4).closing(history)
    for amount, bears in ((ends + 0.1, True), (ends - 0.1, False)):
        assert Ledger((Minutes(amount).testing(4), Trials(1))).bears_test(history) == bears
    assert Ledger((Trials(1), CpuHours(1e-9))).bears_test(history), "no clock ends these"


@pytest.mark.parametrize("budget", [Trials(9), Epochs(150), Minutes(20.0), CpuHours(0.4)], ids=lambda budget: budget.name)
def test_each_keeps_the_contract_and_the_whole_study_stays_inside(budget: Any) -> None:
    history = check_budget(budget, Study(**BASE), pretend)
    if isinstance(budget, Trials):
        assert len(history.search()) == 9
    else:
        # Selection included; the last word of a slot may come an epoch late.
        late = {"epochs": 2, "minutes": 2 * EPOCH / 60, "cpu_hours": 2 * EPOCH / 3600}[budget.name]
        spent = budget.spent(history, Resources())
        assert 0.8 * budget.amount < spent <= budget.amount + late, spent
    finals = [t for t in history.trials.values() if t.spec.purpose == "fold"]
    assert {t.status for t in finals} == {"finished"}
    assert {t.spec.trial for t in finals} == set(history.selected or ())


def test_the_first_that_runs_out_ends_the_search() -> None:
    ends = [
        event.reason
        for fields in ({"trials": 4, "minutes": 60}, {"trials": 400, "minutes": 15})
        for event in simulate(Study(**BASE, budget=fields), pretend)
        if isinstance(event, SearchEnded)
    ]
    assert ends == ["the budget of 4 trials is spent", "the budget of 15 minutes is spent"]


def test_a_spent_budget_stops_what_is_under_way_and_trials_do_not() -> None:
    for fields, under_way in (({"trials": 5}, False), ({"minutes": 15}, True)):
        events = simulate(Study(**BASE, budget=fields), pretend, slots=2)
        stopped = [e for e in events if isinstance(e, Ended) and "budget" in e.reason]
        assert bool(stopped) == under_way
        assert all(e.status == "pruned" for e in stopped)


def test_rounds_that_a_budget_does_not_bear_are_left_out() -> None:
    base = {**BASE, "methods": ["supervised", "mixup"], "selection": {"top": 3, "folds": 4}}
    generous = History(simulate(Study(**base, budget={"minutes": 60}), pretend))
    tight = History(simulate(Study(**base, budget={"minutes": 4}), pretend))
    rounds = [{t.spec.fold for t in h.trials.values() if t.spec.purpose == "fold"} for h in (generous, tight)]
    assert len(rounds[0]) > 1
    assert len(rounds[1]) < len(rounds[0])
    for history in (generous, tight):
        assert sum(t.spec.purpose == "refit" for t in history.trials.values()) == 1, "the winner alone is refitted"
    assert all(t.status == "finished" for t in tight.trials.values() if t.spec.purpose != "search")


def test_time_that_a_study_lay_killed_is_not_spent() -> None:
    history = History([Started(3, None, {}, time=100.0), Opened(100.0, time=100.0), Opened(5000.0, time=5060.0)])
    assert Minutes(5).spent(history, Resources()) == pytest.approx(1.0)


def test_what_more_trainings_would_cost() -> None:
    trial = Trial(TrialSpec("0", 0, "m", {}, 0), epochs=10, seconds=3600.0)
    resources = Resources(slots=2, cpus=4.0, gpus=1.0)
    assert Epochs(1).cost(trial, 2.5, resources) == 25
    assert CpuHours(1).cost(trial, 2.0, resources) == 8
    assert GpuHours(1).cost(trial, 2.0, resources) == 2
    assert Minutes(1).cost(trial, 2.0, resources) == pytest.approx(60, rel=1e-3)
    assert Trials(1).cost(trial, 2.0, resources) == 0


def test_what_cannot_be_counted_here_is_refused() -> None:
    top = Fidelity("epochs", 3)
    with pytest.raises(UserError, match=r"gpu_hours needs GPUs.*got 2; use cpu_hours"):
        GpuHours(2).check(Resources(), top)
    GpuHours(2).check(Resources(gpus=1), top)
    with pytest.raises(UserError, match=r"budget\.labels is for tasks that buy labels, got 50"):
        Labels(50).check(Resources(), top)
    Labels(50).check(Resources(), Fidelity("labels", 200))


def test_a_ledger_of_several() -> None:
    ledger = Ledger((Trials(2), Epochs(10)))
    history = History()
    assert ledger.may_start(history)
    for number in range(2):
        history.add(TrialStarted(TrialSpec(str(number), number, "m", {}, 0)))
    assert not ledger.may_start(history)
    assert ledger.must_stop(history) is None, "trials under way are trained on"
    history.trials["0"].epochs = 10
    assert ledger.must_stop(history) == Epochs(10)
    assert (str(Trials(1)), str(Minutes(2.5)), str(CpuHours(1))) == ("1 trial", "2.5 minutes", "1 cpu hour")


@dataclass(frozen=True)
class ForkOnce(Strategy):
    """One trial to the first rung, then one with its weights to the top."""

    def next(self, problem: Problem, history: History) -> Decision:
        if not history.search():
            return Start(problem.sampler.propose(history), problem.rungs[0])
        if len(history.search()) == 1 and history.undecided():
            return Fork("0000", {}, problem.top)
        return Wait() if history.open() else Done()


def test_a_fork_pays_for_its_own_epochs_alone() -> None:
    events = simulate(Study(**{**BASE, "methods": ["supervised"], "trials": 2}, strategy=ForkOnce()), pretend)
    ended = next(number for number, event in enumerate(events) if isinstance(event, SearchEnded))
    history = History(events[:ended])
    parent, fork = history.search()
    first = parent.epochs
    assert 0 < first < 9
    assert (fork.epochs, fork.inherited, fork.seconds) == (9, first, EPOCH * (9 - first))
    assert history.elapsed == EPOCH * 9
    assert Epochs(99).spent(history, Resources()) == 9
