"""A whole study with pretended slots: its course, and its resumption from every point at which it can be killed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from methods.training.clock import Fidelity
from orchestrator.engine.controller import Controller, StrategyError
from orchestrator.engine.events import Extended
from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal
from orchestrator.engine.records import Report, Rung, Trial, TrialSpec
from orchestrator.engine.selection import contenders, lineup
from orchestrator.strategies import Decision, Problem, Stop, Strategy, Wait
from orchestrator.study import Selection


def course(history: History) -> list[tuple[Any, ...]]:
    """Everything that a study decided, without what it measured of itself."""
    return [
        (
            *(t.spec.key, t.spec.trial, t.spec.title, sorted(t.spec.values.items()), t.spec.seed, t.spec.purpose),
            *(t.status, t.reason, t.epochs, t.seconds),
            [(r.epoch, r.value, None if r.units is None else r.units.tolist()) for r in t.rungs],
            [e.epoch for e in history.curve(t.spec.key)],
        )
        for t in history.trials.values()
    ] + [(history.selected,)]


def check(history: History, trials: int, selection: Selection, refits: frozenset[str]) -> None:
    searched = history.search()
    assert [t.spec.trial for t in searched] == list(range(trials))
    assert all(t.status != "running" for t in history.trials.values())
    configurations = [(t.spec.method, tuple(sorted(t.spec.values.items()))) for t in searched]
    assert len(set(configurations)) == trials
    assert history.finals is not None
    chosen = history.finals.trials
    finished = sorted((t for t in searched if t.status == "finished"), key=lambda t: -(t.value or 0))
    first = [t for i, t in enumerate(finished) if t.spec.method not in {o.spec.method for o in finished[:i]}]
    expected = (first + [t for t in finished if t not in first])[: selection.top]
    assert chosen == [t.spec.trial for t in finished if t in expected], "the best of each method, then the next best"
    turns = [(repeat, fold) for repeat in range(selection.seeds) for fold in range(history.finals.rounds)]
    for number in chosen:
        judged = [
            (t.spec.repeat, t.spec.fold) for t in history.trials.values() if t.spec.trial == number and t.spec.purpose == "fold"
        ]
        assert judged == turns[: len(judged)], "round by round"
        assert judged, "every finalist is judged once at least"
    board = finalists(history)
    refitted = [t.spec.trial for t in history.trials.values() if t.spec.purpose == "refit"]
    if board and board[0].trial.spec.method in refits:
        assert refitted == [board[0].trial.spec.trial] * (selection.refit_seeds or selection.seeds)
    else:
        assert not refitted


def test_the_whole_budget_may_be_trained_on_with_more_seeds(pretence: Callable[..., Any]) -> None:
    study = pretence(trials=4, selection=Selection(top=1, seeds=1, refit_seeds=4), refits=frozenset({"one", "two"}))
    history = study.play()
    check(history, 4, study.selection, study.refits)
    assert len([t for t in history.trials.values() if t.spec.purpose == "refit"]) == 4


def test_the_learning_curve_is_read_on_a_fold_that_chose_nothing(pretence: Callable[..., Any]) -> None:
    """The search chose on the first fold: where the winner was lucky there, fewer labels would seem to cost too much."""
    history = pretence(trials=20, selection=Selection(top=1, folds=2, seeds=1), failing=0.0).play()
    assert history.finals is not None
    assert history.finals.rounds == 2
    curves = [t for t in history.trials.values() if t.spec.purpose == "curve"]
    assert curves
    assert {(t.spec.fold, t.spec.folds) for t in curves} == {(1, 2)}


def test_a_study_takes_its_course(pretence: Callable[..., Any]) -> None:
    study = pretence(trials=12, selection=Selection(top=6, folds=2, seeds=2), failing=0.25, seed=1)
    history = study.play()
    check(history, 12, study.selection, study.refits)
    searched = history.search()
    assert [t.spec.method for t in searched[:2]] == ["one", "two"]
    assert {t.status for t in searched} == {"finished", "pruned", "failed"}
    for trial in history.trials.values():
        if trial.status == "failed":
            assert trial.reason == "diverged"
            continue
        assert trial.epochs == (3 if trial.status == "finished" else 1)
        stops = [1] if trial.status == "pruned" else [3] if trial.spec.parent is not None else [1, 3]
        assert [r.epoch for r in trial.rungs] == stops * (trial.spec.purpose != "refit")
        if trial.status == "pruned":
            assert trial.spec.purpose == "search"
            assert trial.spec.trial >= 2, "defaults train to the end"
            assert trial.reason.startswith("below the best 1/2 of ")
    judged = [t for t in history.trials.values() if t.spec.purpose == "fold"]
    assert {t.spec.method for t in judged} == {"one", "two"}
    for t in judged:
        # The search's own models serve where they can: label-free ones for all folds, others for the first. With another seed
        # a label-free training serves the folds after its first.
        own = t.spec.repeat == 0 and (t.spec.method == "one" or t.spec.fold == 0)
        again = t.spec.repeat > 0 and t.spec.method == "one" and t.spec.fold > 0
        first = history.trials.get(f"{t.spec.trial:04d}-0of2-{t.spec.repeat}")
        if again and first is not None and first.status == "finished":
            assert (t.spec.parent, t.spec.seed) == (first.spec.key, first.spec.seed)
        else:
            assert (t.spec.parent == f"{t.spec.trial:04d}") == own
            assert (t.spec.seed == searched[t.spec.trial].spec.seed) == own
        assert (t.seconds == 0) == (t.spec.parent is not None or t.status == "failed")
    for trial in history.trials.values():
        if trial.spec.purpose != "search":
            assert dict(trial.spec.values) == dict(searched[trial.spec.trial].spec.values)


def test_who_is_stopped_against_a_plain_loop(pretence: Callable[..., Any]) -> None:
    """One slot, reduction 2: a trial is stopped when it lies below the median so far, unless it is a method's defaults."""
    stopped = set()
    for seed in range(12):
        scores: list[float] = []
        for trial in pretence(trials=5, seed=seed, failing=0.0).play().search():
            scores.append(trial.rungs[0].value)
            below = scores[-1] < statistics.median(scores)
            assert trial.status == ("pruned" if below and trial.spec.trial >= 2 else "finished"), trial.spec.key
            stopped |= {trial.spec.trial} if trial.status == "pruned" else set()
    assert stopped == {2, 3, 4}, "the seeds show each number stopped at least once"


def test_checkpoints_of_the_search_go_but_the_finalists(pretence: Callable[..., Any]) -> None:
    study = pretence()
    history = study.play()
    left = {path.stem for path in study.folder.glob("*.pt")}
    assert left == {f"{t.spec.key}-3" for t in history.trials.values() if t.checkpoint is not None}
    kept = [t for t in history.trials.values() if t.checkpoint is not None]
    assert {t.spec.trial for t in kept if t.spec.purpose == "search"} == set(history.selected or ())
    assert all(t.status == "finished" for t in kept)


def test_the_journal_says_what_the_sweep_knows(pretence: Callable[..., Any]) -> None:
    study = pretence()
    assert course(study.play()) == course(study.history())


def test_the_same_seed_gives_the_same_course_and_another_does_not(pretence: Callable[..., Any]) -> None:
    assert course(pretence().play()) == course(pretence().play())
    assert course(pretence().play()) != course(pretence(seed=1).play())


def test_a_finished_study_resumes_to_nothing(pretence: Callable[..., Any]) -> None:
    study = pretence()
    before = course(study.play())
    assert study.written
    assert course(study.play()) == before
    assert not study.written


def test_a_lost_worker_fails_its_trial_alone(pretence: Callable[..., Any]) -> None:
    study = pretence(failing=0.0)
    history = study.play(lose="0001")
    lost = history.trials["0001"]
    assert (lost.status, "worker died" in lost.reason) == ("failed", True)
    assert [t.spec.key for t in history.search() if t.status == "failed"] == ["0001"]
    check(history, 7, study.selection, study.refits)


def test_a_study_whose_every_trial_fails_ends_without_a_winner(pretence: Callable[..., Any]) -> None:
    history = pretence(failing=1.1).play()
    assert history.selected == []
    assert {t.status for t in history.search()} <= {"failed", "pruned"}
    assert len(history.trials) == 7


def test_reports_of_ended_trials_change_nothing(pretence: Callable[..., Any]) -> None:
    study = pretence(failing=0.0)
    journal = Journal(study.storage)
    try:
        controller = study.controller(journal)
        given = controller.next_assignment()
        assert given is not None
        controller.lost(given.spec.key)
        told = len(controller.history.events)
        controller.lost(given.spec.key)
        late = Report(given.spec.key, 1, "train", {}, 1.0, 32, "running", Fidelity("epochs", 1))
        assert not controller.receive(late)
        assert len(controller.history.events) == told
        assert controller.history.trials[given.spec.key].status == "failed"
    finally:
        journal.close()


def test_more_trials_reopen_the_selection(pretence: Callable[..., Any]) -> None:
    study = pretence(trials=5)
    before = study.play()
    journal = Journal(study.storage)
    journal.write(Extended(9))
    journal.close()
    after = study.play()
    earlier = course(before)[:-1]
    assert course(after)[: len(earlier)] == earlier
    assert len(after.search()) == 9
    assert len({tuple(sorted(t.spec.values.items())) for t in after.search()}) == 9
    best = sorted((t for t in after.search() if t.status == "finished"), key=lambda t: -(t.value or 0))
    assert after.selected == [t.spec.trial for t in contenders(best, 2)]
    assert {t.spec.trial for t in after.trials.values() if t.spec.purpose == "fold"} >= set(after.selected or ())


def kill_points(study: Any) -> int:
    study.play()
    return study.written


def test_killed_at_every_write_it_resumes_to_the_same_course(pretence: Callable[..., Any], killed: type[BaseException]) -> None:
    """With one slot a study that is killed and resumed, wherever, decides exactly what an undisturbed one does."""
    small = {"trials": 9, "selection": Selection(top=1, seeds=2), "refits": frozenset({"one", "two"})}
    undisturbed = pretence(**small)
    writes = kill_points(undisturbed)
    expected = course(undisturbed.history())
    assert writes > 40
    for at in range(writes):
        study = pretence(**small)
        with pytest.raises(killed):
            study.play(kill_at=at)
        assert study.written == at
        assert course(study.play()) == expected, f"killed at write {at}"


def test_what_a_slot_says_and_all_that_follows_from_it_is_one_write(
    pretence: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end, the next trial's start and the checkpoints that go with it: each synced write costs a short trial a tenth."""
    said = []
    receive = Controller.receive

    def counted(self: Controller, report: Any) -> bool:
        said.append(report)
        return receive(self, report)

    monkeypatch.setattr(Controller, "receive", counted)
    study = pretence(trials=9)
    study.play()
    opening = 3  # Started, Opened, and what the slots begin with
    assert len(said) > 20
    assert study.written <= opening + len(said)


ENCODERS = {"one": ("pretrained", "other"), "two": ("fresh", "pretrained", "other")}


def test_killed_at_every_write_a_comparison_of_encoders_resumes_to_the_same_course(
    pretence: Callable[..., Any], killed: type[BaseException]
) -> None:
    small = {"trials": 8, "selection": Selection(top=2, seeds=1), "refits": frozenset({"one", "two"}), "encoders": ENCODERS}
    undisturbed = pretence(**small)
    writes = kill_points(undisturbed)
    expected = course(undisturbed.history())
    assert writes > 20
    for at in range(writes):
        study = pretence(**small)
        with pytest.raises(killed):
            study.play(kill_at=at)
        assert course(study.play()) == expected, f"killed at write {at}"


def test_every_training_of_a_configuration_has_its_encoder(pretence: Callable[..., Any]) -> None:
    for seed in range(4):
        chosen = {"selection": Selection(top=3, seeds=1), "refits": frozenset({"one", "two"})}
        history = pretence(trials=12, encoders=ENCODERS, failing=0.0, seed=seed, **chosen).play()
        searched = history.search()
        assert {t.spec.encoder for t in searched} == {"fresh", "pretrained", "other"}
        assert all(t.spec.encoder in ENCODERS[t.spec.method] for t in searched)
        configurations = {(t.spec.method, t.spec.encoder, tuple(sorted(t.spec.values.items()))) for t in searched}
        assert len(configurations) == 12
        assert {t.spec.purpose for t in history.trials.values()} >= {"search", "fold", "refit"}
        for trial in history.trials.values():
            assert trial.spec.encoder == searched[trial.spec.trial].spec.encoder


def test_the_best_with_each_encoder_is_a_finalist_after_the_best_of_each_method(pretence: Callable[..., Any]) -> None:
    for seed in range(8):
        study = pretence(trials=14, encoders=ENCODERS, failing=0.0, seed=seed, selection=Selection(top=4))
        finished = [t for t in study.play().search() if t.status == "finished"]
        order = sorted(finished, key=lambda t: (-(t.value or 0), t.spec.trial))
        expected: list[Any] = []
        for of in (lambda t: t.spec.method, lambda t: t.spec.encoder, lambda t: t.spec.key):
            for trial in order:
                if of(trial) not in map(of, expected):
                    expected.append(trial)
        assert [t.spec.key for t in lineup(finished, 4)] == [t.spec.key for t in expected[:4]]
        for name in {t.spec.method for t in finished}:
            own = next(t for t in order if t.spec.method == name)
            two = lineup(finished, 2, name)
            assert own in two, "the baseline is a finalist wherever there are two"
            assert two[0] is order[0]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    turns=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    slots=st.integers(2, 3),
    failing=st.sampled_from([0.0, 0.3]),
)
def test_killed_again_and_again_with_many_slots_it_finishes_what_was_asked(
    pretence: Callable[..., Any],
    killed: type[BaseException],
    kills: list[int],
    turns: list[int],
    slots: int,
    failing: float,
) -> None:
    study = pretence(slots=slots, failing=failing)
    step = iter(range(10**6))

    def order(n: int) -> int:
        return turns[next(step) % len(turns)]

    for at in kills:
        try:
            study.play(kill_at=at, order=order)
        except killed:
            continue
    check(study.play(order=order), 7, study.selection, study.refits)
    check(study.history(), 7, study.selection, study.refits)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.integers(0, 5), min_size=1, max_size=30), slots=st.integers(2, 4))
def test_many_slots_in_any_order_finish_what_was_asked(pretence: Callable[..., Any], turns: list[int], slots: int) -> None:
    study = pretence(slots=slots)
    step = iter(range(10**6))
    check(study.play(order=lambda n: turns[next(step) % len(turns)]), 7, study.selection, study.refits)


class Stubborn(Strategy):
    """Stops a trial that has ended."""

    def next(self, problem: Problem, history: History) -> Decision:
        ended = [t for t in history.search() if t.status != "running"]
        waiting = history.undecided()
        return Stop((ended or waiting)[0].spec.key, "again") if ended or waiting else problem.start(history)


class Idle(Strategy):
    """Waits for nothing."""

    def next(self, problem: Problem, history: History) -> Decision:
        return Wait()


def test_a_strategy_that_breaks_its_contract_is_one_clear_line(pretence: Callable[..., Any]) -> None:
    for strategy, words in ((Stubborn(), "Stop must name a trial that has not ended"), (Idle(), "Idle waits although")):
        with pytest.raises(StrategyError, match=words):
            pretence(strategy=strategy, failing=0.0).play()


def test_a_search_of_which_nothing_works_ends_without_a_number_of_trials(pretence: Callable[..., Any]) -> None:
    history = pretence(trials=None, failing=1.1, epochs=(2, 3)).play()
    assert history.search_ended is not None
    assert history.search_ended.reason == "every trial has failed"
    assert len(history.search()) < 15
    assert all(t.seconds > 0 for t in history.search() if t.status == "failed"), "what they trained is spent"


def test_more_trials_leave_interrupted_retrainings_to_the_selection(
    pretence: Callable[..., Any], killed: type[BaseException]
) -> None:
    study = pretence(trials=4, failing=0.0)
    study.play()
    late = study.written - 3
    study = pretence(trials=4, failing=0.0)
    with pytest.raises(killed):
        study.play(kill_at=late)
    assert [t for t in study.history().trials.values() if t.status == "running"]
    journal = Journal(study.storage)
    journal.write(Extended(5))
    journal.close()
    history = study.play()
    assert len(history.search()) == 5
    assert {t.status for t in history.trials.values() if t.spec.purpose != "search"} == {"finished"}


@pytest.mark.parametrize("seed", range(6))
def test_measured_seconds_decide_no_course(pretence: Callable[..., Any], seed: int) -> None:
    """A busy machine plans the same finalists, folds and curve trainings, and prefers the same one of equals."""
    usual: type[Any] = pretence().slot

    class Busy(usual):  # type: ignore[misc]
        def advance(self) -> Report:
            told = super().advance()
            return replace(told, train_seconds=told.train_seconds * (1 + 20 * self.draw("busy") ** 4))

    plain, busy = (
        pretence(trials=12, selection=Selection(), slot=kind, seed=seed, failing=0.0).play() for kind in (usual, Busy)
    )
    assert plain.finals is not None
    assert busy.finals is not None
    assert replace(plain.finals, time=0) == replace(busy.finals, time=0)
    assert list(plain.trials) == list(busy.trials)


def test_a_baseline_that_the_search_saw_far_behind_takes_no_finalists_place() -> None:
    def trial(number: int, method: str, right: int) -> Trial:
        bits = np.arange(40) < right
        score = Rung(3, right / 40, 40, 0.0, 1.0, "validation", bits, 0.1)
        return Trial(TrialSpec(f"{number:04d}", number, method, {}, 0), "finished", rungs=[score])

    for right, second in ((31, "supervised"), (8, "mixup")):
        some = [trial(0, "simclr", 34), trial(1, "mixup", 32), trial(2, "supervised", right)]
        assert [t.spec.method for t in lineup(some, 2, "supervised")] == ["simclr", second]
