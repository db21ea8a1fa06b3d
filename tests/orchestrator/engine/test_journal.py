"""The journal: every event survives, in parts; damage is named; one writer at a time; and what it adds up to."""

from __future__ import annotations

import base64
import json
import math
import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import LocalStorage, StorageError
from methods.protocols.confidence import Reliability, Scaling
from methods.training.clock import Fidelity
from orchestrator.budgets import CpuHours, Epochs, Resources
from orchestrator.engine import events, records
from orchestrator.engine import journal as module
from orchestrator.engine.events import (
    FORMAT,
    Calibrated,
    Chosen,
    Ended,
    Event,
    Extended,
    Forgotten,
    Opened,
    Predicted,
    Proposed,
    Reached,
    Scored,
    SearchEnded,
    SegmentStarted,
    Selected,
    Started,
    Trained,
    TrialStarted,
    decode,
    encode,
)
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal, JournalError, read_journal
from orchestrator.engine.records import Rung, Segment, TrialSpec
from search_spaces.domains import UserError


def same(a: Any, b: Any) -> bool:
    """Equality that looks into dataclasses and arrays, and takes NaN for itself."""
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


def write(folder: Path, *events: Event) -> None:
    journal = Journal(LocalStorage(folder))
    for event in events:
        journal.write(event)
    journal.close()


def read(folder: Path) -> list[Event]:
    return list(read_journal(LocalStorage(folder)))


def rung(epoch: int = 1, value: float = 0.5, correct: np.ndarray | None = None) -> Rung:
    n = 10 if correct is None else len(correct)
    return Rung(epoch, value, n, 0.1, 0.9, "validation", correct, 1.5)


ONE, THREE = Fidelity("epochs", 1), Fidelity("epochs", 3)
SPEC = TrialSpec("0000", 0, "simclr", {"lr": 0.1, "batch_size": 64, "loss": "a\nb – ü", "normalise": True}, 2**62)
STARTED = Started(FORMAT, 8, {"torch": "2.9"}, time=12.5)
EVENTS: list[Event] = [
    STARTED,
    Started(FORMAT, None, {}),
    Opened(3.25, time=4.5),
    TrialStarted(SPEC),
    TrialStarted(TrialSpec("0001-refit-0", 1, "mae", {}, 3, "refit", "defaults", 2, "0001")),
    TrialStarted(replace(SPEC, key="0002", encoder="lite0 from none")),
    SegmentStarted(Segment("0000", ONE, None, (THREE, Fidelity("epochs", 9)))),
    SegmentStarted(Segment("0000", Fidelity("seconds", 1.5), "trials/0000/checkpoint-1.pt")),
    Trained("0000", 1, 1.25, {"loss": 0.1 + 0.2, "accuracy": float("nan")}),
    Trained("0000", 2, 3.5, {"mask_rate": 0.5}, [3, 0, 9], 120),
    Scored("0000", rung(correct=np.array([True, False, True] * 7)), ONE),
    Scored("0000", Rung(3, 0.25, 600, -math.inf, math.inf, "episodes", None, 0.0), THREE),
    Scored("0000", Rung(3, 0.25, 3, 0.1, 0.4, "episodes", np.array([0.1, 0.75, 1], np.float32), 0.0), THREE),
    Reached("0000", THREE, "trials/0000/checkpoint-3.pt"),
    Ended("0000", "failed", 'it said: "no"\nand more'),
    Proposed({"supervised": "the baseline"}, {"seconds": 60.0}, ["a larger budget would add mae"]),
    SearchEnded("the budget of 8 trials is spent"),
    Selected([3, 1], 4, 3),
    Forgotten("0000"),
    Calibrated(Scaling(1.5, 0.01, 100)),
    events.Ensembled(
        (events.Member(3, 0.75, Scaling(1.5, 0.01, 100), 3), events.Member(1, 0.25, Scaling(1.0, 0.01, 100), 2)),
        *(Scaling(0.9, 0.01, 100), 0.9, 0.92, 0.02, -0.01, 0.05, 100),
    ),
    events.Distilled("trials/0003/student.pt", 0.97, 1.5),
    Predicted(0.91, 0.85, 0.95, 0.9, {"out_of_fold": 0.9}),
    Selected([]),
    Chosen(3, "0003-fold1-0"),
    events.Tested(records.TestScore("0003-refit-0", 3, 0.91, 1000, 0.89, 0.93)),
    events.EnsembleTested((events.Step("folds", records.TestScore("0003", 3, 0.9, 10, 0.8, 0.9), 0.01, -0.02, 0.04),)),
    events.Tested(
        records.TestScore("0003", 3, 0.9, 10, 0.8, 0.9, 7, 0.5, Reliability(0.2, 0.1, 0.1, 0.1, (0.5, 1), (1.0, 0.9)))
    ),
    Extended(12),
]


def test_every_kind_of_event_is_tried() -> None:
    assert {type(e) for e in EVENTS} == set(Event.__args__)


def test_every_event_survives_with_its_time_first(tmp_path: Path) -> None:
    write(tmp_path, *EVENTS)
    found = read(tmp_path)
    assert len(found) == len(EVENTS)
    for before, after in zip(EVENTS, found, strict=True):
        assert same(before, after), (before, after)
    for line in (tmp_path / "journal" / "000000.jsonl").read_text().splitlines():
        assert list(json.loads(line))[:2] == ["time", "event"]


@settings(deadline=None, max_examples=50)
@given(bits=st.lists(st.booleans(), min_size=1, max_size=70), value=st.floats(), seconds=st.floats(0, 1e6))
def test_scores_survive_bit_by_bit(bits: list[bool], value: float, seconds: float) -> None:
    event = Scored("k", Rung(2, value, len(bits), value, value, "budget", np.array(bits), seconds), ONE)
    assert same(event, decode(encode(event).encode()))


def test_a_study_of_one_encoder_has_the_journal_that_it_had_before_encoders_were_compared() -> None:
    assert "encoder" not in json.loads(encode(TrialStarted(SPEC)))["spec"]
    assert json.loads(encode(TrialStarted(replace(SPEC, encoder="lite0"))))["spec"]["encoder"] == "lite0"


def test_bits_are_packed() -> None:
    line = encode(Scored("k", rung(correct=np.ones(800, bool)), ONE))
    assert len(base64.b64decode(json.loads(line)["rung"]["units"]["data"])) == 100


def test_parts_are_filled_in_order_and_never_touched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 300)
    write(tmp_path, *EVENTS)
    parts = sorted((tmp_path / "journal").glob("*.jsonl"))
    assert [part.name for part in parts] == [f"{i:06d}.jsonl" for i in range(len(parts))]
    assert len(parts) > 3
    assert all(same(a, b) for a, b in zip(EVENTS, read(tmp_path), strict=True))
    before = [part.read_bytes() for part in parts]
    write(tmp_path, Extended(13))
    assert [part.read_bytes() for part in parts] == before, "another process begins a part of its own"
    assert read(tmp_path)[-1] == Extended(13)


def test_events_of_one_write_come_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(LocalStorage(tmp_path))
    journal.write(STARTED)

    def full(self: LocalStorage, key: str, value: memoryview) -> None:
        raise StorageError("no space is left")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "put", full)
        with pytest.raises(StorageError):
            journal.write(Extended(9), Extended(10))
    journal.write(Extended(11))
    journal.close()
    assert read(tmp_path) == [STARTED, Extended(11)]


def test_opening_alone_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, *EVENTS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    Journal(LocalStorage(tmp_path)).close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"trial","spec":',
        b"not json",
        b"17",
        b"null",
        b"[]",
        b"\xff\xfe\x00garbage",
        b'{"event":"unheard"}',
        b'{"no":"event"}',
        b'{"event":"ended","key":"0000"}',
        b'{"event":"ended","key":"0000","status":"failed","reason":"","more":1}',
        b'{"event":"scored","key":"0000","rung":{"epoch":1}}',
    ],
)
def test_a_damaged_line_is_refused_with_its_place(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, STARTED, TrialStarted(SPEC))
    part = tmp_path / "journal" / "000000.jsonl"
    part.write_bytes(part.read_bytes() + line + b"\n" + encode(Extended(9)).encode() + b"\n")
    with pytest.raises(JournalError, match=r"journal/000000\.jsonl is damaged at line 3: ") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_a_word_about_a_trial_that_never_started_is_damage() -> None:
    with pytest.raises(JournalError, match="damaged at event 2: it tells of '9999', never started"):
        History([STARTED, Ended("9999", "failed", "")])


def test_another_format_and_no_journal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is not a run folder: it has no journal"):
        read(tmp_path)
    write(tmp_path, Started(FORMAT + 1, 8, {}))
    with pytest.raises(
        JournalError, match=f"has format {FORMAT + 1}, and this version reads format {FORMAT}; run the study anew"
    ):
        read(tmp_path)


def _try(storage: bytes, queue: Any) -> None:
    try:
        Journal(pickle.loads(storage)).close()  # noqa: S301  made by this test
        queue.put("opened")
    except StorageError as error:
        queue.put(str(error))


def test_a_second_writer_is_refused_here_and_in_another_process(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = Journal(storage)
    first.write(STARTED)
    with pytest.raises(StorageError, match="is being written by another run"):
        Journal(storage)
    context = multiprocessing.get_context("fork")
    answers = []
    for _ in range(2):
        queue = context.SimpleQueue()
        process = context.Process(target=_try, args=(pickle.dumps(storage), queue))
        process.start()
        process.join(30)
        answers.append(queue.get())
        first.close()
    assert "another run" in answers[0]
    assert answers[1] == "opened"
    assert read(tmp_path) == [STARTED]


def test_a_history_adds_up() -> None:
    other = TrialSpec("0001", 1, "mae", {}, 1)
    refit = TrialSpec("0000-refit-0", 0, "simclr", {}, 1, "refit")
    history = History()
    for event in (
        STARTED,
        TrialStarted(SPEC),
        SegmentStarted(Segment("0000", ONE)),
        TrialStarted(other),
        SegmentStarted(Segment("0001", ONE)),
        Trained("0000", 1, 2.0, {"loss": 1.0}),
        Scored("0000", rung(1, 0.4), ONE),
        Reached("0000", ONE, "one.pt"),
    ):
        history.add(event)
    assert [t.spec.key for t in history.open()] == ["0001"]
    assert [t.spec.key for t in history.undecided()] == ["0000"]
    for event in (
        SegmentStarted(Segment("0000", THREE, "one.pt")),
        Trained("0001", 1, 9.0, {"loss": 1.0}),
        Trained("0000", 2, 4.0, {"loss": 0.5}),
        Trained("0000", 3, 6.0, {"loss": 0.25}),
        Scored("0000", rung(3, 0.6), THREE),
        Reached("0000", THREE, "three.pt"),
        Ended("0000", "finished", ""),
        Ended("0001", "failed", "diverged"),
        SearchEnded("enough"),
        Selected([0]),
        TrialStarted(refit),
        Chosen(0, "0000-refit-0"),
        events.Tested(records.TestScore("0000-refit-0", 0, 0.7, 100, 0.6, 0.8)),
    ):
        history.add(event)
    first = history.trials["0000"]
    assert (history.started, history.trials_wanted) == (STARTED, 8)
    assert (first.status, first.reason, first.epochs, first.seconds, first.done) == ("finished", "", 3, 6.0, THREE)
    assert (first.value, first.checkpoint, [r.epoch for r in first.rungs]) == (0.6, "three.pt", [1, 3])
    assert [e.parts["loss"] for e in history.curve("0000")] == [1.0, 0.5, 0.25]
    second = history.trials["0001"]
    assert (second.status, second.reason, second.value, second.checkpoint) == ("failed", "diverged", None, None)
    assert [t.spec.key for t in history.search()] == ["0000", "0001"]
    assert history.trials["0000-refit-0"].status == "running"
    assert history.curve("0000-refit-0") == []
    assert (history.selected, history.chosen, len(history.tests)) == ([0], Chosen(0, "0000-refit-0"), 1)
    assert history.scores_at(ONE) == {"0000": 0.4}
    assert history.scores_at(THREE) == {"0000": 0.6}
    history.add(Extended(20))
    assert (history.trials_wanted, history.search_ended, history.selected, history.chosen) == (20, None, None, None)
    assert history.tests == []
    assert history.trials["0000"] is first


def test_time_that_a_study_lay_killed_does_not_count() -> None:
    history = History([replace(STARTED, time=101.0), Opened(100.0, time=101.0), Extended(9, time=130.0)])
    assert (history.now, history.elapsed) == (130.0, 30.0)
    history.add(Opened(1000.0, time=1002.0))
    assert history.elapsed == 32.0
    history.add(Extended(10, time=1010.0))
    assert history.elapsed == 40.0


def test_epochs_trained_again_after_a_resume_count_once() -> None:
    history = History()
    for event in (
        TrialStarted(SPEC),
        SegmentStarted(Segment("0000", THREE)),
        Trained("0000", 1, 1.0, {"loss": 1.0}),
        Scored("0000", rung(1, 0.4), ONE),
        Trained("0000", 2, 2.0, {"loss": 2.0}),
        Opened(9.0),
        Trained("0000", 1, 1.5, {"loss": 10.0}),
        Scored("0000", rung(1, 0.45), ONE),
        Trained("0000", 2, 2.5, {"loss": 20.0}),
        Trained("0000", 3, 3.5, {"loss": 30.0}),
    ):
        history.add(event)
    trial = history.trials["0000"]
    assert (trial.epochs, trial.seconds) == (3, 3.5)
    assert [(r.epoch, r.value) for r in trial.rungs] == [(1, 0.45)]
    assert [(e.epoch, e.parts["loss"]) for e in history.curve("0000")] == [(1, 10.0), (2, 20.0), (3, 30.0)]


def test_what_was_trained_after_the_checkpoint_did_not_happen() -> None:
    """By the clock no epoch of the second try comes where one of the first came."""
    half, whole = Fidelity("seconds", 5.0), Fidelity("seconds", 10.0)
    history = History()
    for event in (
        TrialStarted(SPEC),
        SegmentStarted(Segment("0000", half)),
        Trained("0000", 1, 3.0, {}),
        Trained("0000", 1.6, 5.0, {}),
        Reached("0000", half, "half.pt"),
        SegmentStarted(Segment("0000", whole, "half.pt")),
        Trained("0000", 2, 6.0, {}),
        Trained("0000", 3, 9.0, {}),
        Opened(99.0),
    ):
        history.add(event)
    trial = history.trials["0000"]
    assert (trial.epochs, trial.seconds) == (1.6, 5.0)
    history.add(Trained("0000", 2.1, 6.5, {}))
    assert [e.epoch for e in history.curve("0000")] == [1, 1.6, 2.1]


def test_a_fork_has_its_parents_epochs_and_its_own_seconds() -> None:
    fork = replace(SPEC, key="0001", trial=1, origin="forked", parent="0000")
    history = History()
    for event in (
        TrialStarted(SPEC),
        SegmentStarted(Segment("0000", ONE)),
        Trained("0000", 1, 4.0, {}),
        Reached("0000", ONE, "one.pt"),
        TrialStarted(fork),
        SegmentStarted(Segment("0001", THREE, "one.pt")),
    ):
        history.add(event)
    trial = history.trials["0001"]
    assert (trial.epochs, trial.inherited, trial.seconds) == (1, 1, 0.0)
    assert Epochs(9).spent(history, Resources()) == 1
    history.add(Trained("0001", 3, 10.0, {}))
    assert Epochs(9).spent(history, Resources()) == 3
    assert trial.seconds_from_nothing == 15.0
    assert CpuHours(1).cost(trial, 1.0, Resources()) == pytest.approx(15 / 3600)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 9), slots=st.integers(1, 3))
def test_what_a_controller_writes_is_read_as_it_was(pretence: Callable[..., Any], seed: int, slots: int) -> None:
    study = pretence(seed=seed, slots=slots)
    live, back = study.play(), study.history()
    assert same(live.trials, back.trials)
    assert [t.spec.key for t in live.search()] == [t.spec.key for t in back.search()]
    assert (live.selected, live.now, live.elapsed) == (back.selected, back.now, back.elapsed)
