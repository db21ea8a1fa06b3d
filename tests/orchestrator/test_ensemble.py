"""A study whose winner is several: chosen without the test, exported as one model, and told in the report either way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.machine import Node
from methods.parts.heads import Mixture, Tempered
from methods.parts.joined import JoinedEncoder
from methods.protocols.confidence import BINS
from methods.protocols.reliability import calibration_error
from orchestrator import Result, Study, resume, run
from orchestrator.engine import events
from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.trial import load_training, trained
from orchestrator.export import export, portable
from orchestrator.folder import RunFolder
from orchestrator.prepare import plan_for, prepare
from orchestrator.study import StudyError

GIVEN: dict[str, Any] = {
    "data": "digits", "size": 12, "labels": 60, "methods": ["supervised", "knn_classifier", "linear_probe"], "trials": 3,
    "epochs": 2, "epoch_images": 128, "encoder": "conv4", "precision": "fp32", "name": "several",
    "search": {"supervised.batch_size": 16},
}  # fmt: skip
SELECTION = {"top": 3, "folds": 2}


@pytest.fixture(scope="module")
def alone(without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(Study(**GIVEN, selection=SELECTION), tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def several(without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    result = run(Study(**GIVEN, selection={**SELECTION, "ensemble": True}), tmp_path_factory.mktemp("several") / "run")
    before = (result.folder / "journal").stat().st_mtime_ns
    resume(result.folder)
    assert (result.folder / "journal").stat().st_mtime_ns == before, "a finished study is only looked at"
    return result


def history_of(result: Result) -> History:
    return History(read_journal(result.storage))


def asked(result: Result) -> tuple[Tensor, np.ndarray]:
    test = prepare(result.run.load_study()).split.test
    assert test is not None
    return test.data.images.take(torch.from_numpy(test.index)), test.label


def untimed(found: History) -> list[Any]:
    """What was decided and found out after the search, without clocks."""
    told = []
    for event in found.events:
        if isinstance(event, events.Chosen | events.Calibrated | events.Ensembled | events.Predicted):
            told.append(replace(event, time=0.0))
        if isinstance(event, events.Tested):
            told.append((event.score.key, event.score.value))
        if isinstance(event, events.EnsembleTested):
            told += [(step.name, step.score.value, step.gain, step.low, step.high) for step in event.gains]
    return told


def test_where_it_is_off_the_line_stands_all_the_same_and_no_test_is_asked(alone: Result) -> None:
    found = history_of(alone)
    kinds = [
        type(e) for e in found.events if isinstance(e, events.Chosen | events.Ensembled | events.Predicted | events.Tested)
    ]
    assert kinds[:4] == [events.Chosen, events.Ensembled, events.Predicted, events.Tested]
    assert found.ensembled is not None
    assert found.steps == ()
    (line,) = (s for s in (alone.folder / "verdict.txt").read_text().splitlines() if "out of fold against" in s)
    assert f"the winner would score {found.ensembled.together:.1%}" in line
    assert "selection.ensemble" in line
    assert "the winner would score" in (alone.folder / "report.html").read_text()
    assert not isinstance(alone.winner().load_encoder(), JoinedEncoder)
    assert alone.winner().ensemble == ()


def test_where_it_is_on_the_same_ensemble_is_exported(alone: Result, several: Result) -> None:
    first, found = history_of(alone), history_of(several)
    assert found.ensembled is not None
    assert first.ensembled is not None
    assert replace(found.ensembled, time=0.0, exported=False) == replace(first.ensembled, time=0.0)
    best = several.winner()
    assert [member["trial"] for member in best.ensemble] == [member.trial for member in found.ensembled.members]
    assert len(best.ensemble) > 1
    assert best.calibration == found.ensembled.scaling
    assert best.test.scores == (found.steps[-1].score.value,)
    assert best.method == finalists(found)[0].trial.spec.method, "the winner is the first"
    model = best.load_predictor()
    assert isinstance(model.encoder, JoinedEncoder)
    mixture, tempered = model.head
    assert isinstance(mixture, Mixture)
    assert isinstance(tempered, Tempered)
    # The two feature methods share one frozen encoder.
    models = [len(member.heads) for member in mixture.heads]
    assert len(model.encoder.members) < sum(models)
    assert models == [member["models"] for member in best.ensemble]


def test_it_answers_with_the_mean_of_its_members(several: Result) -> None:
    found, x = history_of(several), asked(several)[0][:40]
    assert found.ensembled is not None
    prepared = prepare(several.run.load_study())
    shared = prepared.setup(several.storage, plan_for(prepared.study, (Node(1.0, 0.0, 2**30),)))
    p = torch.zeros(len(x), 10, dtype=torch.float64)
    by_number = {f.trial.spec.trial: f for f in finalists(found)}
    for member in found.ensembled.members:
        models = [*by_number[member.trial].refits, *by_number[member.trial].judged]
        log_p = torch.zeros(len(x), 10, dtype=torch.float64)
        for trial in models:
            assert trial.checkpoint is not None
            predictor = trained(load_training(shared, trial.spec, trial.checkpoint, torch.device("cpu"))).predictor
            assert predictor is not None
            with torch.no_grad():
                log_p += member.scaling.layer()(predictor.eval()(x).double()).log_softmax(1) / len(models)
        p += member.weight * log_p.softmax(1)
    own = several.winner().load_predictor()
    with torch.no_grad():
        torch.testing.assert_close(
            own(x).double().softmax(1), found.ensembled.scaling.layer()(p.log()).softmax(1), atol=1e-5, rtol=0
        )


def test_each_step_is_tested_once_and_its_gain_told(several: Result) -> None:
    found = history_of(several)
    assert sum(isinstance(event, events.EnsembleTested) for event in found.events) == 1
    assert [step.name for step in found.steps] == ["folds", "finalists"]
    best, (x, label) = finalists(found)[0], asked(several)
    first, last = found.steps
    assert first.score.value - first.gain == pytest.approx(best.tests[0].value)
    assert last.score.value - last.gain == pytest.approx(first.score.value)
    assert first.low < first.gain < first.high
    with torch.no_grad():
        p = several.winner().load_predictor()(x).double().softmax(1)
    right = (p.argmax(1).numpy() == label).astype(float)
    assert right.mean() == pytest.approx(last.score.value, abs=0.004)
    assert last.score.reliability is not None
    assert calibration_error(p.max(1).values.numpy(), right, BINS) == pytest.approx(last.score.reliability.after, abs=0.01)
    assert first.score.reliability is None
    (line,) = (s for s in (several.folder / "verdict.txt").read_text().splitlines() if s.startswith("Exported is an ensemble"))
    for step in found.steps:
        assert f"{step.score.value:.1%} ({step.gain:+.1%}" in line


def test_it_is_one_graph(several: Result, tmp_path: Path) -> None:
    made = export(several.folder, "onnx", tmp_path / "several.onnx")
    assert made.path.exists()
    assert "the same answers" in made.checked
    probabilities, embedding = portable(several.winner())(asked(several)[0][:3].expand(-1, 3, -1, -1))
    assert probabilities.shape == (3, 10)
    assert embedding.shape == (3, several.winner().load_encoder().dim)


@pytest.mark.long
def test_it_is_one_program(several: Result, tmp_path: Path) -> None:
    assert "the same answers" in export(several.folder, "torch", tmp_path / "several.pt2").checked


class Killed(BaseException):
    pass


@pytest.fixture
def copied(several: Result, tmp_path: Path) -> Path:
    shutil.copytree(several.folder, tmp_path / "run")
    return tmp_path / "run"


def killed_after(last: type, result: Result, copied: Path) -> None:
    """The journal ends after the first ``last``, and nothing was exported."""
    whole = history_of(result)
    kept = next(i for i, event in enumerate(whole.events) if isinstance(event, last)) + 1
    (journal,) = sorted((copied / "journal").iterdir())
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(whole.events)
    journal.write_bytes(b"".join(lines[:kept]))
    shutil.rmtree(copied / "best")


@pytest.mark.parametrize("last", [events.Chosen, events.Calibrated, events.Ensembled, events.Tested])
def test_a_kill_at_the_end_changes_nothing(several: Result, copied: Path, last: type) -> None:
    whole = history_of(several)
    killed_after(last, several, copied)
    again = resume(copied)
    assert untimed(history_of(again)) == untimed(whole)
    before, after = (json.loads((r.folder / RunFolder.SCORES).read_text()) for r in (several, again))
    assert after["ensemble"] == before["ensemble"]
    assert [score["value"] for score in after["test"]] == [score["value"] for score in before["test"]]


@pytest.fixture(scope="module", params=["supervised", "linear_probe"])
def distilled(request: pytest.FixtureRequest, without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Winners of either kind: a network, and a head on frozen features."""
    given = {**GIVEN, "methods": [request.param, "knn_classifier"], "trials": 2, "search": {"*.batch_size": 16}}
    selection = {"top": 2, "folds": 2, "baseline": request.param, "ensemble": True, "distill": True}
    if request.param == "linear_probe":
        given["search"] = {}
    return run(Study(**given, selection=selection), tmp_path_factory.mktemp("distilled") / "run")


def test_the_ensemble_becomes_one_model(distilled: Result, tmp_path: Path) -> None:
    found, best = history_of(distilled), distilled.winner()
    kinds = [type(e) for e in found.events if isinstance(e, events.Ensembled | events.Distilled | events.Tested)]
    assert kinds[:3] == [events.Ensembled, events.Distilled, events.Tested]
    assert found.distilled is not None
    assert 0.3 < found.distilled.agreement <= 1
    last = found.steps[-1]
    assert last.name == "distilled"
    assert best.test.scores == (last.score.value,)
    assert best.calibration is None
    model = best.load_predictor()
    assert not isinstance(model.encoder, JoinedEncoder)
    x, label = asked(distilled)
    with torch.no_grad():
        assert (model(x).argmax(1).numpy() == label).mean() == pytest.approx(last.score.value, abs=0.004)
    said = (distilled.folder / "verdict.txt").read_text()
    assert f"Exported is one model distilled from {sum(m.models for m in found.ensembled.members)} models" in said
    assert f"all as one model {last.score.value:.1%} ({last.gain:+.1%}" in said
    assert "learnt the calibrated probabilities of an ensemble" in (distilled.folder / "report.html").read_text()
    shutil.copytree(distilled.folder, copied := tmp_path / "run")
    killed_after(events.Ensembled, distilled, copied)
    again = history_of(resume(copied))
    assert untimed(again) == untimed(found)
    assert again.distilled is not None
    assert again.distilled.agreement == found.distilled.agreement


def test_answers_that_the_exported_classifier_did_not_give_are_refused() -> None:
    with pytest.raises(StudyError, match=r"selection.ensemble averages .* protocol knn does not ask; leave it out"):
        Study(**GIVEN, protocol="knn", selection={"ensemble": True})
    with pytest.raises(StudyError, match=r"selection\.distill needs an ensemble .* set ensemble: true too"):
        Study(**GIVEN, selection={"distill": True})
    with pytest.raises(StudyError, match=r"selection\.ensemble"):
        Study(data="glyphs", task="few_shot", methods=["prototypical"], selection={"ensemble": True})
