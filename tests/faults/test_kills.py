"""Real kills of the driver in every phase of a study: what a resume makes of it is what an undisturbed study would have been.

Minutes long, so it has a command of its own: ``make checks``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connect
from cluster.storage import LocalStorage
from orchestrator import Study, resume, run
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.strategies import Continue, Decision, Done, Problem, Start, Strategy, Wait

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]

GIVEN: dict[str, Any] = {
    "data": "digits",
    "size": 12,
    "labels": 60,
    "epoch_images": 64,
    "methods": ["supervised", "pseudo_label"],
    "trials": 6,
    "epochs": 3,
    "search": {"*.batch_size": 16},
    "selection": {"top": 2, "folds": 2},
    "slots": 1,
}


@dataclass(frozen=True)
class AllThenOn(Strategy):
    """Every trial pauses at the first rung until all have been there; then each goes on."""

    def next(self, problem: Problem, history: History) -> Decision:
        if problem.may_start(history):
            configuration = problem.sampler.propose(history)
            return Start(configuration, problem.rungs_of(configuration.method)[0])
        for trial in history.undecided():
            return Continue(trial.spec.key, problem.top)
        return Wait() if history.open() else Done()


STRATEGIES: dict[str, Strategy | str] = {"asha_stopping": "asha_stopping", "pausing": AllThenOn()}

# The event, of which purpose, how many of them: there the driver is killed, at once and without a word.
AT_EVENTS = [
    ("asha_stopping", "trained", "search", 5),
    ("asha_stopping", "scored", "search", 4),
    ("pausing", "reached", "search", 4),
    ("pausing", "trained", "search", 9),
    ("asha_stopping", "selected", "", 1),
    ("asha_stopping", "trained", "fold", 3),
    ("asha_stopping", "trained", "refit", 2),
    ("asha_stopping", "chosen", "refit", 1),
    ("asha_stopping", "tested", "", 1),
]

# A key of the run folder, just before it is written.
AT_WRITES = ["leaderboard.csv", "report.html", "best/encoder.pt", "best/scores.json"]

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {here!r})
from cluster.storage import LocalStorage
from orchestrator import Study, run
from test_kills import GIVEN, STRATEGIES

def die():
    os.kill(os.getpid(), signal.SIGKILL)

seen = []
def watch(event, history):
    key = getattr(event, "key", "")
    of = history.trials[key].spec.purpose if key in history.trials else ""
    seen.append((event.event, of) == ({event!r}, {purpose!r}))
    if {count} and sum(seen) == {count}:
        die()

put = LocalStorage.put
def write(self, key, value):
    if key == {key!r}:
        die()
    put(self, key, value)
LocalStorage.put = write

run(Study(**GIVEN, strategy=STRATEGIES[{strategy!r}], address="local"), {out!r}, sinks=[watch])
"""


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connect("local", cpus=2):
        yield


def told(out: Path) -> tuple[list[Any], list[Any]]:
    """All that a study decided and scored, without its seconds; and the test scores."""
    history = History(read_journal(LocalStorage(out)))
    trials = [
        (
            *(t.spec.key, t.spec.method, sorted(t.spec.values.items()), t.spec.seed, t.spec.purpose, t.status, t.epochs),
            [(r.epoch, r.value, None if r.units is None else r.units.tolist()) for r in t.rungs],
            [(e.epoch, e.parts) for e in history.curve(t.spec.key)],
        )
        for t in history.trials.values()
    ]
    assert history.chosen is not None
    return trials, [(s.key, s.value) for s in history.tests] + [(history.chosen.trial, history.selected)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], list[Any]]]:
    found = {}
    for name, strategy in STRATEGIES.items():
        out = tmp_path_factory.mktemp(name) / "run"
        run(Study(**GIVEN, strategy=strategy), out)
        found[name] = told(out)
    return found


def killed(out: Path, strategy: str, event: str = "", purpose: str = "", count: int = 0, key: str = "") -> None:
    here = str(Path(__file__).parent)
    script = SCRIPT.format(here=here, strategy=strategy, event=event, purpose=purpose, count=count, key=key, out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


@pytest.mark.parametrize(("strategy", "event", "purpose", "count"), AT_EVENTS)
def test_a_study_killed_after_an_event(
    undisturbed: dict[str, Any], tmp_path: Path, strategy: str, event: str, purpose: str, count: int
) -> None:
    out = tmp_path / "run"
    killed(out, strategy, event, purpose, count)
    result = resume(out, study=Study(**GIVEN, strategy=STRATEGIES[strategy]))
    assert told(out) == undisturbed[strategy]
    assert len(result.leaderboard()) == GIVEN["trials"]


@pytest.mark.parametrize("key", AT_WRITES)
def test_a_study_killed_before_a_file_is_written(undisturbed: dict[str, Any], tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    killed(out, "asha_stopping", key=key)
    assert key not in LocalStorage(out).list(key)
    result = resume(out, study=Study(**GIVEN))
    assert told(out) == undisturbed["asha_stopping"]
    assert key in LocalStorage(out).list(key)
    assert result.best is not None
    result.best.load_predictor()
