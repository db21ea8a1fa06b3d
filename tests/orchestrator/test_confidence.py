"""Calibrated confidences from study to CSV: fitted out of fold, kept in the winner's predictor, told in report and verdict."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from methods.data.records import LabelledSubset
from methods.parts.heads import Tempered
from methods.protocols.confidence import BINS, fit_scaling
from methods.protocols.reliability import calibration_error
from orchestrator import Result, Study, resume, run
from orchestrator import cli as cli_module
from orchestrator.engine import events
from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.folder import load_tensors
from orchestrator.predict import predict
from orchestrator.prepare import prepare
from search_spaces.domains import UserError

STUDY = Study(
    data="digits", size=12, labels=60, methods=["linear_probe"], trials=2, epochs=1, epoch_images=64, encoder="conv4",
    precision="fp32", name="sure",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(without_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Result:
    result = run(STUDY, tmp_path_factory.mktemp("sure") / "run")
    before = (result.folder / "journal").stat().st_mtime_ns
    resume(result.folder)
    assert (result.folder / "journal").stat().st_mtime_ns == before, "a finished study is only looked at"
    return result


@pytest.fixture(scope="module")
def test() -> LabelledSubset:
    found = prepare(STUDY).split.test
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images(test: LabelledSubset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty test images as files."""
    folder = tmp_path_factory.mktemp("images")
    for row, position in enumerate(test.index[:20]):
        Image.fromarray(test.data.images.take(torch.tensor([position]))[0, 0].numpy()).save(folder / f"{row:02d}.png")
    return folder


def test_it_is_fitted_on_the_winners_folds_before_the_test_is_opened(finished: Result) -> None:
    history = History(read_journal(finished.storage))
    kinds = [type(event) for event in history.events if isinstance(event, events.Chosen | events.Calibrated | events.Tested)]
    assert kinds[:3] == [events.Chosen, events.Calibrated, events.Tested]
    judged = finalists(history)[0].judged
    kept = [load_tensors(finished.storage, f"trials/{t.spec.key}/answers.pt", "cpu") for t in judged]
    logits, label = (torch.cat([each[name] for each in kept]).numpy() for name in ("logits", "label"))
    assert len(label) == 60
    assert history.calibrated is not None
    assert history.calibrated.scaling == fit_scaling(logits.astype(np.float64), label)
    assert finished.winner().calibration == history.calibrated.scaling


def test_the_exported_predictor_has_the_error_that_is_told(finished: Result, test: LabelledSubset) -> None:
    best = finished.winner()
    model = best.load_predictor()
    head = model.head
    assert isinstance(head, torch.nn.Sequential)
    assert isinstance(head[-1], Tempered)
    with torch.no_grad():
        raw = head[:-1](model.encoder(test.data.images.take(torch.from_numpy(test.index)))).double()
        found = {name: z.softmax(1).max(1) for name, z in (("before", raw), ("after", head[-1](raw)))}
    told = json.loads((finished.folder / "best" / "scores.json").read_text())["test"][0]["reliability"]
    for name, answer in found.items():
        right = (answer.indices.numpy() == test.label).astype(float)
        assert calibration_error(answer.values.numpy(), right, BINS) == pytest.approx(told[name], abs=0.01)
    assert told["accuracy"][-1] == pytest.approx(best.test.mean, abs=0.01)


def test_report_and_verdict_say_it(finished: Result) -> None:
    html, said = (finished.folder / "report.html").read_text(), (finished.folder / "verdict.txt").read_text()
    assert "<h2>Confidence</h2>" in html
    assert "before calibration" in html
    assert html.split("<h2>Confidence</h2>")[1].split("<h2>")[0].count("<svg") == 1
    (line,) = (line for line in said.splitlines() if "calibrated" in line)
    assert line.startswith("Of the 80% of the test images that it is surest of")


def test_confidences_are_the_predictors(finished: Result, images: Path, test: LabelledSubset) -> None:
    best = finished.winner()
    with torch.no_grad():
        p = best.load_predictor()(test.data.images.take(torch.from_numpy(test.index[:20]))).double().softmax(1)
    frame = predict(finished.folder, images, probabilities=True)
    assert list(frame.columns) == ["file", "class", "confidence", *(f"p:{name}" for name in best.classes)]
    assert np.allclose(frame["confidence"], p.max(1).values, atol=1e-4)
    assert np.allclose(frame.iloc[:, 3:], p, atol=1e-5)
    assert list(frame["class"]) == [best.classes[k] for k in p.argmax(1).tolist()]
    assert list(predict(finished.folder, images).columns) == ["file", "class", "confidence"]


def test_abstaining_leaves_the_least_sure_blank(finished: Result, images: Path) -> None:
    whole = predict(finished.folder, images)
    some = predict(finished.folder, images, abstain=0.25)
    blank = some["class"] == ""
    assert blank.sum() == 5
    assert some["confidence"][blank].max() <= some["confidence"][~blank].min()
    assert list(some["confidence"]) == list(whole["confidence"])
    assert list(some["class"][~blank]) == list(whole["class"][~blank])
    limit = float(whole["confidence"].sort_values().iloc[7])
    below = predict(finished.folder, images, confidence=limit)["class"] == ""
    assert list(below) == list(whole["confidence"] < limit)
    assert 0 < below.sum() <= 7
    for nothing in ({"abstain": 0.0}, {"confidence": 0.0}):
        assert (predict(finished.folder, images, **nothing)["class"] != "").all()
    assert (predict(finished.folder, images, abstain=1.0)["class"] == "").all()


def test_the_command_writes_them_and_counts_on_standard_error(
    finished: Result, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["labelwise", "predict", str(finished.folder), str(images), "--abstain", "0.25", "--probabilities"]
    monkeypatch.setattr(sys, "argv", words)
    cli_module.main()
    said = capsys.readouterr()
    frame = pd.read_csv(io.StringIO(said.out))
    assert frame["class"].isna().sum() == 5
    assert [name for name in frame.columns if name.startswith("p:")] == [f"p:{name}" for name in finished.winner().classes]
    named = frame["class"].notna()
    assert said.err == (
        f"named 15 of 20 images, of which {frame['confidence'][named].mean():.1%} should be right; 5 left blank\n"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--confidence", "1.5"], "confidence must lie between 0 and 1, got 1.5"),
        (["--abstain", "-0.1"], "abstain must lie between 0 and 1, got -0.1"),
        (["--abstain", "nan"], "abstain must lie between 0 and 1, got nan"),
        (["--abstain", "0.1", "--confidence", "0.9"], "exclude each other, got 0.1 and 0.9; give one"),
    ],
)
def test_bad_limits_are_refused_in_one_line(
    finished: Result, images: Path, options: list[str], words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["labelwise", "predict", str(finished.folder), str(images), *options])
    with pytest.raises(SystemExit) as stop:
        cli_module.main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert words in said.err


def test_without_classes_there_is_nothing_to_leave_blank(finished: Result, images: Path) -> None:
    predictor = finished.folder / "best" / "predictor.pt"
    kept = predictor.read_bytes()
    predictor.unlink()
    try:
        for asked in ({"abstain": 0.1}, {"confidence": 0.9}, {"probabilities": True}):
            with pytest.raises(UserError, match="need fixed classes"):
                predict(finished.folder, images, **asked)
    finally:
        predictor.write_bytes(kept)
