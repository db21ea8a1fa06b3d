"""The journal: every event survives, a torn end is cut off, damage is named, one writer at a time; and what it adds up to."""

from __future__ import annotations

import base64
import json
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.engine import journal as events
from orchestrator.engine import records
from orchestrator.engine.events import FORMAT, Chosen, Ended, Event, Extended, Scored, Selected, Started, Trained, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal, JournalError, read_journal
from orchestrator.engine.records import Rung, TrialSpec
from search_spaces.domains import UserError


def same(a: Any, b: Any) -> bool:
    """Equality that looks into dataclasses and arrays, and takes NaN for itself."""
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


def write(path: Path, *events: Event) -> None:
    journal = Journal(path)
    for event in events:
        journal.write(event)
    journal.close()


def rung(epoch: int = 1, value: float = 0.5, correct: np.ndarray | None = None) -> Rung:
    n = 10 if correct is None else len(correct)
    return Rung(epoch, value, n, 0.1, 0.9, "validation", correct, 1.5)


SPEC = TrialSpec(
    "0000", 0, "simclr", {"lr": 0.1, "batch_size": 64, "loss": "a\nb – ü", "normalise": True}, 2**62, "search", None
)
STARTED = Started(FORMAT, 8, {"torch": "2.9"})
EVENTS: list[Event] = [
    STARTED,
    TrialStarted(SPEC),
    TrialStarted(TrialSpec("0001-refit-0", 1, "mae", {}, 3, "refit", "/somewhere/checkpoint.pt")),
    Trained("0000", 1, 3.25, {"loss": 0.1 + 0.2, "odd": math.nan}),
    Trained("0000", 2, 3.5, {"mask_rate": 0.5}, [3, 0, 9], 120),
    Scored("0000", rung(correct=np.array([True, False, True] * 7))),
    Scored("0000", Rung(3, 0.25, 600, -math.inf, math.inf, "episodes", None, 0.0)),
    Scored("0000", Rung(3, 0.25, 3, 0.1, 0.4, "episodes", np.array([0.1, 0.75, 1], np.float32), 0.0)),
    Reached("0000", 3, "/somewhere/trials/0000/checkpoint.pt"),
    Ended("0000", "failed", 'it said: "no"\nand more'),
    Selected([3, 1]),
    Selected([]),
    Chosen(3, "0003-retrain-0"),
    events.Tested(records.TestScore("0003-refit-0", 3, 0.91, 1000, 0.89, 0.93)),
    Extended(12),
]


def test_every_kind_of_event_is_tried() -> None:
    assert {type(e) for e in EVENTS} == set(Event.__args__)


def test_every_event_survives(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, *EVENTS)
    found = list(read_journal(path))
    assert len(found) == len(EVENTS)
    for before, after in zip(EVENTS, found, strict=True):
        assert same(before, after), (before, after)
    assert len(path.read_text().splitlines()) == len(EVENTS)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=st.lists(st.booleans(), min_size=1, max_size=70), value=st.floats(), seconds=st.floats(0, 1e6))
def test_scores_survive_bit_by_bit(tmp_path: Path, bits: list[bool], value: float, seconds: float) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    event = Scored("k", Rung(2, value, len(bits), value, value, "budget", np.array(bits), seconds))
    write(path, event)
    (found,) = read_journal(path)
    assert same(event, found)


def test_bits_are_packed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, Scored("k", rung(correct=np.ones(800, bool))))
    assert len(base64.b64decode(json.loads(path.read_text())["rung"]["units"]["data"])) == 100


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_dropped_and_cut_off_before_writing_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, STARTED, Extended(9), TrialStarted(SPEC))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [type(e) for e in read_journal(path)] == [Started, Extended]
    write(path, Extended(10))
    assert [getattr(e, "trials", None) for e in read_journal(path)] == [8, 9, 10]
    assert path.read_bytes().startswith(whole[: whole.rindex(b'{"event":"asked"')])


def test_a_journal_torn_in_its_first_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"event":"sta')
    assert list(read_journal(path)) == []
    write(path, STARTED)
    assert [type(e) for e in read_journal(path)] == [Started]


def test_a_whole_journal_is_not_touched_by_opening(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, *EVENTS)
    before = path.read_bytes()
    Journal(path).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"asked","job":',
        b"not json",
        b"",
        b"17",
        b"null",
        b"[]",
        b"\xff\xfe\x00garbage",
        b'{"event":"unheard"}',
        b'{"no":"event"}',
        b'{"event":"ended","key":"0000"}',
        b'{"event":"ended","key":"0000","status":"failed","reason":"","more":1}',
        b'{"event":"scored","key":"0000","rung":{"epoch":1}}',
        b'{"event":"ended","key":"9999","status":"failed","reason":""}',
    ],
)
def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, STARTED, TrialStarted(SPEC))
    path.write_bytes(path.read_bytes() + line + b"\n" + b'{"event":"extended","trials":9}\n')
    with pytest.raises(JournalError, match=r"journal\.jsonl is damaged at line 3: ") as caught:
        History.read(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_another_format_and_no_journal_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(JournalError, match=r"is not a run folder: it has no journal\.jsonl"):
        History.read(path)
    write(path, Started(FORMAT + 1, 8, {}))
    with pytest.raises(
        JournalError, match=f"has format {FORMAT + 1}, and this version reads format {FORMAT}; run the study anew"
    ):
        History.read(path)


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.write(STARTED)
    # The first writer is in the middle of a line.
    first._file.write('{"event":"ext')
    first._file.flush()
    with pytest.raises(JournalError, match="is being written by another run"):
        Journal(path)
    first._file.write('ended","trials":9}\n')
    first.close()
    assert [type(e) for e in read_journal(path)] == [Started, Extended]
    write(path, Extended(10))


def _try(path: str, queue: Any) -> None:
    try:
        Journal(Path(path)).close()
        queue.put("opened")
    except JournalError as error:
        queue.put(str(error))


def test_a_writer_in_another_process_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    context = multiprocessing.get_context("fork")
    journal = Journal(path)
    answers = []
    for _ in range(2):
        queue = context.SimpleQueue()
        # Opened by path, so that the lock is asked for anew and not inherited.
        process = context.Process(target=_try, args=(str(path), queue))
        process.start()
        process.join(30)
        answers.append(queue.get())
        journal.close()
    assert "another run" in answers[0]
    assert answers[1] == "opened"


def test_a_history_adds_up() -> None:
    history = History(None, 0, {}, {}, None, None, [])
    other = TrialSpec("0001", 1, "mae", {}, 1)
    refit = TrialSpec("0000-refit-0", 0, "simclr", {}, 1, "refit")
    for event in (
        STARTED,
        TrialStarted(SPEC),
        TrialStarted(other),
        Trained("0000", 1, 2.0, {"loss": 1.0}),
        Scored("0000", rung(1, 0.4)),
        Reached("0000", 1, "one.pt"),
        Trained("0001", 1, 9.0, {"loss": 1.0}),
        Trained("0000", 2, 4.0, {"loss": 0.5}),
        Trained("0000", 3, 6.0, {"loss": 0.25}),
        Scored("0000", rung(3, 0.6)),
        Reached("0000", 3, "three.pt"),
        Ended("0000", "finished", ""),
        Ended("0001", "failed", "diverged"),
        Selected([0]),
        TrialStarted(refit),
        Chosen(0, "0000-refit-0"),
        events.Tested(records.TestScore("0000-refit-0", 0, 0.7, 100, 0.6, 0.8)),
    ):
        history.add(event)
    first = history.trials["0000"]
    assert (history.started, history.trials_wanted) == (STARTED, 8)
    assert (first.status, first.reason, first.epochs, first.seconds) == ("finished", "", 3, 6.0)
    assert (first.value, first.checkpoint, [r.epoch for r in first.rungs]) == (0.6, "three.pt", [1, 3])
    assert [e.parts["loss"] for e in history.curve("0000")] == [1.0, 0.5, 0.25]
    second = history.trials["0001"]
    assert (second.status, second.reason, second.value, second.checkpoint) == ("failed", "diverged", None, None)
    assert [t.spec.key for t in history.search()] == ["0000", "0001"]
    assert history.trials["0000-refit-0"].status == "running"
    assert history.curve("0000-refit-0") == []
    assert (history.selected, history.chosen, len(history.tests)) == ([0], Chosen(0, "0000-refit-0"), 1)
    history.add(Extended(20))
    assert (history.trials_wanted, history.selected, history.chosen, history.tests) == (20, None, None, [])
    assert history.trials["0000"] is first


def test_epochs_trained_again_after_a_resume_count_once() -> None:
    history = History(None, 0, {}, {}, None, None, [])
    for event in (
        TrialStarted(SPEC),
        Trained("0000", 1, 1.0, {"loss": 1.0}),
        Scored("0000", rung(1, 0.4)),
        Trained("0000", 2, 2.0, {"loss": 2.0}),
        Trained("0000", 1, 1.5, {"loss": 10.0}),
        Scored("0000", rung(1, 0.45)),
        Trained("0000", 2, 2.5, {"loss": 20.0}),
        Trained("0000", 3, 3.5, {"loss": 30.0}),
    ):
        history.add(event)
    trial = history.trials["0000"]
    assert (trial.epochs, trial.seconds) == (3, 3.5)
    assert [(r.epoch, r.value) for r in trial.rungs] == [(1, 0.45)]
    assert [(e.epoch, e.parts["loss"]) for e in history.curve("0000")] == [(1, 10.0), (2, 20.0), (3, 30.0)]


def test_what_a_sweep_writes_is_read_as_it_was(pretence: Callable[..., Any]) -> None:
    study = pretence()
    live, read = study.play(), History.read(study.journal)
    for key, trial in live.trials.items():
        assert same(trial.spec, read.trials[key].spec)
        assert len(trial.rungs) == len(read.trials[key].rungs)
        assert all(same(a, b) for a, b in zip(trial.rungs, read.trials[key].rungs, strict=True))
