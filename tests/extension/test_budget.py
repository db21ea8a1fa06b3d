"""A budget of one's own: energy, by the epochs that are trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from methods.training.clock import Fidelity
from orchestrator import Study, run
from orchestrator.budgets import Budget, Resources
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.records import Configuration, Trial
from orchestrator.testing import check_budget

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EACH = 60.0
"""Joules of an epoch."""


@dataclass(frozen=True)
class Joules(Budget):
    """So many joules are spent in all."""

    name: ClassVar[str] = "joules"
    amount: float

    def spent(self, history: History, resources: Resources) -> float:
        # What a trial took over from another's weights was paid for there.
        return sum(trial.epochs - trial.inherited for trial in history.trials.values()) * EACH

    def cost(self, trial: Trial, share: float, resources: Resources) -> float:
        return share * trial.epochs * EACH


def pretend(configuration: Configuration, fidelity: Fidelity, seed: int) -> tuple[float, float]:
    return seed % 1000 / 1000, 3.0 * fidelity.amount


def test_it_keeps_the_contract() -> None:
    study = Study(data="digits", methods=["supervised", "simclr"], selection={"top": 2, "seeds": 1})
    history = check_budget(Joules(20_000.0), study, pretend)
    spent = Joules(20_000.0).spent(history, Resources())
    # The finalists' trainings included. A slot's word may come an epoch late: the toy's 60 J.
    assert 16_000 < spent <= 20_000 + EACH


def test_a_study_ends_by_it(small: dict[str, Any], tmp_path: Path) -> None:
    del small["trials"]
    result = run(Study(**small, budget=[Joules(400.0)]), tmp_path / "run")
    history = History(read_journal(result.storage))
    assert history.search_ended is not None
    assert "400 joules" in history.search_ended.reason
    assert result.best is not None
