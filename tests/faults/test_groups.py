"""Worker groups in which one rank fails alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.connect import connect
from methods import Context, Learner, Method
from methods.baselines.supervised import METHOD as SUPERVISED
from orchestrator import Study, run
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connect("local", cpus=2):
        yield


def _half_built(config: object, context: Context) -> Learner:
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        raise RuntimeError("deliberate")
    assert SUPERVISED.learner is not None
    return SUPERVISED.learner(config, context)


def test_a_rank_that_cannot_begin_fails_its_trial_and_the_group_goes_on(tmp_path: Path) -> None:
    half = Method("half_built", "baseline", "none", "fails on rank 1", SUPERVISED.config, _half_built, uses_labels=True)
    study = Study(
        data="digits",
        size=12,
        labels=60,
        epoch_images=64,
        methods=[half, "supervised"],
        trials=2,
        epochs=1,
        workers=2,
        search={"*.batch_size": 16},
        selection={"top": 1, "seeds": 1},
    )
    began = time.monotonic()
    result = run(study, tmp_path / "run")
    assert time.monotonic() - began < 60, "nobody waits in a collective"
    history = History(read_journal(result.storage))
    assert [(t.status, t.reason) for t in history.search()] == [("failed", "RuntimeError: deliberate"), ("finished", "")]
