"""Whole studies with methods on frozen features, on a real local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import orchestrator.features as features_module
from cluster.connect import connect
from orchestrator import Study, resume, run
from orchestrator.prepare import prepare
from orchestrator.study import StudyError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

SMALL: dict[str, Any] = {
    "data": "digits",
    "size": 12,
    "labels": 60,
    "epoch_images": 64,
    "epochs": 3,
    "trials": 6,
    "methods": ["linear_probe", "prototype_classifier", "supervised"],
    "search": {"supervised.batch_size": 16},
    "selection": {"top": 2, "seeds": 1},
    "slots": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """One local Ray for the module; ``run`` finds it."""
    with connect("local", cpus=2):
        yield


@pytest.mark.long
def test_probes_and_a_trained_method_share_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELWISE_CACHE", str(tmp_path / "cache"))
    study = Study(**SMALL)
    first = run(study, tmp_path / "first")
    frame = first.leaderboard()
    assert set(frame["status"]) <= {"finished", "pruned"}
    trained = frame["method"] == "supervised"
    assert (frame["epochs"][trained] > 0).all()
    assert (frame["epochs"][~trained] == 0).all()
    # Whatever they cost, the table is in the order of their worth.
    rest = frame[(frame["status"] == "finished") & frame["test_mean"].isna()]
    assert list(rest["val"]) == sorted(rest["val"], reverse=True)
    best, test = first.best, prepare(study).split.test
    assert best is not None
    assert test is not None
    with torch.no_grad():
        predicted = best.load_predictor()(test.data.images.take(torch.from_numpy(test.index))).argmax(1).numpy()
    assert np.mean(predicted == test.label) == pytest.approx(best.test.scores[0], abs=0.03)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a second study on the same data embeds nothing")

    monkeypatch.setattr(features_module, "embed_views", never)
    second = run(study, tmp_path / "second")
    again = second.leaderboard()
    assert list(again["val"]) == list(frame["val"])
    more = resume(tmp_path / "second", trials=8)
    assert len(more.leaderboard()) == 8


def test_epochs_alone_never_end_a_study_of_probes(tmp_path: Path) -> None:
    study = Study(**{**SMALL, "methods": ["linear_probe"], "search": {}, "trials": None, "budget": {"epochs": 5}})
    with pytest.raises(StudyError, match=r"budget\.epochs never ends where no method trains an epoch"):
        run(study, tmp_path / "run")
