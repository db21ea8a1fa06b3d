"""Whole studies on a real local Ray: what they leave, that they repeat, survive kills, and name failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cluster.connect import connect
from cluster.storage import LocalStorage
from methods import BatchSpec, Classifier, Context, Encoder, Learner, Loss, Method, Optimizer, SharedConfig, Step
from methods.parts.heads import load_predictor
from orchestrator import Result, Study, resume, run
from orchestrator.care.files import read_care
from orchestrator.care.label_errors import can_be_found
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.outputs.leaderboard import COLUMNS
from orchestrator.predict import predict
from orchestrator.prepare import prepare
from orchestrator.train import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = {
    "data": "digits",
    "size": 12,
    "labels": 60,
    "epoch_images": 64,
    "search": {"*.batch_size": 16},
    "selection": {"top": 1, "seeds": 2},
    "slots": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """One local Ray for the module; ``run`` finds it."""
    with connect("local", cpus=2):
        yield


def histories(result: Result) -> History:
    return History(read_journal(result.storage))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Result]:
    study = Study(**SMALL, methods=["supervised", "simclr", "fixmatch"], trials=6, epochs=3, reduction=3, name="whole")
    return study, run(study, tmp_path_factory.mktemp("run") / "whole")


def test_the_run_folder_holds_what_the_readme_says(finished: tuple[Study, Result]) -> None:
    study, result = finished
    frame = pd.read_csv(result.folder / "leaderboard.csv")
    assert list(frame.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert len(frame) == study.trials
    assert set(frame["method"]) == {"supervised", "simclr", "fixmatch"}
    assert frame["test_n"].notna().sum() == study.selection.top
    assert not any(t.status == "running" for t in histories(result).trials.values())
    html = (result.folder / "report.html").read_text()
    assert "Winner: " in html
    assert html.count("<svg") >= 2
    assert "<h2>Data care</h2>" in html
    assert "likely label errors" in html
    assert (
        sum("test image" in said and "training image" in said for said in result.run.read_text("verdict.txt").splitlines()) == 1
    )
    care = read_care(result.storage, "care/")
    assert care is not None
    assert care.labels > 0 or not can_be_found()
    lists = {f"care/{kind}.csv" for kind in ("label_errors", "near_duplicates", "leaks", "odd_images")}
    assert lists <= set(result.storage.list("care/"))
    assert yaml.safe_load((result.folder / "study.yaml").read_text())["labels"] == 60
    assert not (result.folder / ".ray").exists()
    assert all(
        (result.folder / "best" / name).is_file() for name in ("config.yaml", "scores.json", "encoder.pt", "predictor.pt")
    )


def test_the_winner_loads_and_scores_as_reported(finished: tuple[Study, Result]) -> None:
    study, result = finished
    best = result.best
    assert best is not None
    test = prepare(study).split.test
    assert test is not None
    images = test.data.images.take(torch.from_numpy(test.index))
    with torch.no_grad():
        predicted = best.load_predictor().eval()(images).argmax(1).numpy()
        embedded = best.load_encoder().eval()(images)
    assert embedded.shape == (len(test), best.load_encoder().dim)
    assert np.mean(predicted == test.label) == pytest.approx(best.test.scores[0], abs=0.03)


def test_the_winner_names_images_in_a_folder(finished: tuple[Study, Result], tmp_path: Path) -> None:
    study, result = finished
    test = prepare(study).split.test
    assert test is not None
    for row in range(20):
        Image.fromarray(test.data.images.take(torch.tensor([test.index[row]]))[0, 0].numpy()).save(tmp_path / f"{row:02d}.png")
    frame = predict(result.folder, tmp_path)
    assert list(frame.columns) == ["file", "class", "confidence"]
    assert list(frame["file"]) == [f"{row:02d}.png" for row in range(20)]
    assert result.best is not None
    images = test.data.images.take(torch.from_numpy(test.index[:20]))
    with torch.no_grad():
        expected = result.best.load_predictor().eval()(images).argmax(1).tolist()
    assert list(frame["class"]) == [result.best.classes[k] for k in expected]


@pytest.mark.long
def test_the_winner_trains_on_two_workers_and_is_exported(finished: tuple[Study, Result], tmp_path: Path) -> None:
    _, result = finished
    out = train(str(result.folder), best=True, workers=2, out=tmp_path / "trained")
    assert sorted(p.name for p in out.iterdir()) == ["encoder.pt", "predictor.pt"]
    assert result.best is not None
    assert load_predictor(out / "predictor.pt").classes == result.best.classes


def test_optuna_reads_the_storage(finished: tuple[Study, Result]) -> None:
    study, result = finished
    stored = optuna.load_study(study_name="whole", storage=f"sqlite:///{result.folder / 'optuna.db'}")
    assert len(stored.trials) == study.trials
    assert all(t.state.is_finished() for t in stored.trials)
    values = {t.spec.trial: t.value for t in histories(result).search() if t.status == "finished"}
    complete = [t for t in stored.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert {int(t.user_attrs["key"]): t.value for t in complete} == values


def test_tensorboard_reads_one_experiment_with_every_knob(finished: tuple[Study, Result]) -> None:
    study, result = finished
    root = EventAccumulator(str(result.folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    content = root.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    named = {info.name for info in experiment.hparam_infos}
    assert named == {"method"} | {f"{m}.{k}" for m, knobs in study.space().knobs.items() for k in knobs}
    for trial in histories(result).search():
        events = EventAccumulator(str(result.folder / "tensorboard" / trial.spec.key)).Reload()
        losses = [e.value for e in events.Scalars("train/loss")]
        assert len(losses) == trial.epochs
        assert [e.value for e in events.Scalars("val/score")] == pytest.approx([r.value for r in trial.rungs], abs=1e-6)
        assert "_hparams_/session_end_info" in events.summary_metadata


def outcome(result: Result) -> list[tuple[object, ...]]:
    """Everything of a study that must repeat: configurations, scores per rung, ends, test scores."""
    history = histories(result)
    trials = [
        (
            t.spec.key,
            t.spec.method,
            tuple(t.spec.values.items()),
            t.spec.seed,
            t.status,
            tuple((r.epoch, r.value) for r in t.rungs),
        )
        for t in history.trials.values()
    ]
    return [*trials, *((s.key, s.value) for s in history.tests)]


def test_the_same_study_twice_gives_the_same_trials_and_scores(finished: tuple[Study, Result], tmp_path: Path) -> None:
    study, first = finished
    assert outcome(run(study, tmp_path / "again")) == outcome(first)


def test_more_trials_continue_the_search(tmp_path: Path) -> None:
    study = Study(**SMALL, methods=["supervised"], trials=2, epochs=1)
    result = run(study, tmp_path / "more")
    before = [t.spec.values for t in histories(result).search()]
    result = resume(result.folder, trials=4)
    history = histories(result)
    assert [t.spec.values for t in history.search()][:2] == before
    assert len({tuple(t.spec.values.items()) for t in history.search()}) == 4
    assert all(t.status != "running" for t in history.trials.values())
    assert len(result.leaderboard()) == 4


@dataclass(frozen=True)
class Config(SharedConfig):
    """Knobs of the failing methods."""


class Failing(Learner):
    """Raises in its third step, or gives a loss that is not a number."""

    def __init__(self, config: Config, context: Context, how: str) -> None:
        super().__init__()
        self.how = how
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=16)

    def loss(self, step: Step) -> Loss:
        if step.number == 2 and self.how == "raise":
            raise RuntimeError("deliberate")
        logits = self.model(step.from_labelled().images)
        return Loss(logits.sum() * float("nan" if self.how == "nan" else 1))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", 1e-3)


def failing(how: str) -> Method:
    def build(config: Config, context: Context) -> Failing:
        return Failing(config, context, how)

    return Method(how, "baseline", "none", "fails on purpose", Config, build, uses_labels=True)


def test_failing_and_diverging_trials_are_named_and_cost_nothing_else(tmp_path: Path) -> None:
    study = Study(**SMALL, methods=[failing("raise"), failing("nan"), "supervised"], trials=4, epochs=2)
    result = run(study, tmp_path / "failing")
    frame = result.leaderboard()
    reasons = {row["method"]: (row["status"], str(row["reason"])) for row in frame.to_dict("records")}
    assert reasons["raise"] == ("failed", "RuntimeError: deliberate")
    assert reasons["nan"][0] == "failed"
    assert "not a number" in reasons["nan"][1]
    assert reasons["supervised"][0] in ("finished", "pruned")
    assert result.best is not None
    assert result.best.method == "supervised"


@pytest.mark.long
def test_trials_on_two_workers_agree_with_one(tmp_path: Path) -> None:
    study = Study(**SMALL, methods=["supervised"], trials=2, epochs=2)
    search = {**SMALL["search"], "*.augmentation_strength": 0.5}
    one = run(study.model_copy(update={"search": search}), tmp_path / "one")
    two = run(study.model_copy(update={"search": search, "workers": 2}), tmp_path / "two")
    curves = [[e.parts["loss"] for e in histories(r).curve("0000")] for r in (one, two)]
    # Only the order of summation differs; a few optimizer steps amplify float32 rounding to well below a thousandth.
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


@pytest.mark.long
def test_meta_learning_on_two_workers_agrees_with_one(tmp_path: Path) -> None:
    """Second-order MAML; three tasks cannot be halved, so that two workers take four."""
    task = {"ways": 2, "shots": 1, "queries": 3, "episodes": 20, "hold_out": "class"}
    small = {"data": "digits", "size": 12, "epoch_images": 64, "selection": {"top": 1, "seeds": 1}, "slots": 1}
    curves = []
    for workers, tasks in ((1, 4), (2, 3)):
        knobs = {"maml.ways": 3, "maml.queries": 2, "maml.steps": 1, "maml.augmentation_strength": 0.5, "maml.tasks": tasks}
        study = Study(
            **small, task="few_shot", few_shot=task, methods=["maml"], trials=1, epochs=2, workers=workers, search=knobs
        )
        history = histories(run(study, tmp_path / str(workers)))
        assert history.search()[0].status == "finished"
        curves.append([e.parts["loss"] for e in history.curve("0000")])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


KILLED = """
import os, signal
from orchestrator import Study, run
from orchestrator.engine.events import Scored

seen = []

def kill(event, history):
    seen.append(isinstance(event, Scored))
    if sum(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

run(Study(**{study!r}), {out!r}, sinks=[kill])
"""


def test_a_killed_driver_resumes_to_exactly_the_requested_trials(tmp_path: Path) -> None:
    given = {**SMALL, "methods": ["supervised", "simclr"], "trials": 7, "epochs": 3, "address": "local"}
    out = tmp_path / "killed"
    script = KILLED.format(study=given, out=str(out))
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, timeout=240
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    left = History(read_journal(LocalStorage(out)))
    assert any(t.status == "running" for t in left.trials.values())
    result = resume(out, study=Study(**{**given, "address": None}))
    history = histories(result)
    search = history.search()
    assert len(search) == 7
    assert len({(t.spec.method, tuple(t.spec.values.items())) for t in search}) == 7
    assert not any(t.status == "running" for t in history.trials.values())
    assert result.best is not None
    assert len(result.leaderboard()) == 7
