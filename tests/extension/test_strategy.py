"""A strategy of one's own: round robin over the methods, every trial trained to the top at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from methods.training.clock import Fidelity
from orchestrator import Study, run
from orchestrator.engine.events import SegmentStarted
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.records import Configuration
from orchestrator.strategies import Decision, Done, Problem, Start, Strategy, Wait
from orchestrator.testing import check_strategy

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class RoundRobin(Strategy):
    """The methods take turns, without rungs."""

    def next(self, problem: Problem, history: History) -> Decision:
        if not problem.may_start(history):
            return Wait() if history.open() else Done()
        method = problem.methods[len(history.search()) % len(problem.methods)]
        return Start(problem.sampler.propose(history, method), problem.top)


def pretend(configuration: Configuration, fidelity: Fidelity, seed: int) -> tuple[float, float]:
    return seed % 1000 / 1000, fidelity.amount


def test_it_keeps_the_contract() -> None:
    history = check_strategy(RoundRobin(), Study(data="digits", methods=["supervised", "mixup", "simclr"], trials=8), pretend)
    names = [trial.spec.method for trial in history.search()]
    assert names == [["supervised", "mixup", "simclr"][i % 3] for i in range(8)]


@pytest.mark.long
def test_a_study_follows_it(small: dict[str, Any], tmp_path: Path) -> None:
    result = run(Study(**{**small, "trials": 4, "epochs": 3}, strategy=RoundRobin()), tmp_path / "run")
    history = History(read_journal(result.storage))
    assert [t.spec.method for t in history.search()] == ["supervised", "pseudo_label"] * 2
    assert {t.status for t in history.search()} == {"finished"}
    searched = {trial.spec.key for trial in history.search()}
    stops = {e.segment.to.amount for e in history.events if isinstance(e, SegmentStarted) and e.segment.key in searched}
    assert stops == {3}, "no rung on the way"
