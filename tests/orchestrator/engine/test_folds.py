"""Cross-validation by group inside a worker: the folds train in lockstep, score as one, and resume exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.data.episodic import split_few_shot
from methods.data.records import ArrayImages, ImageSet, Source
from methods.parts.encoders import EncoderSpec
from methods.protocols import protocol
from methods.tasks import FewShotTask
from methods.training import Training, TrainSettings
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.engine.examination import examine
from orchestrator.engine.records import Assignment, Report, Segment, SlotSetup, TrialSpec
from orchestrator.engine.trial import SegmentRun, load_training, trained
from orchestrator.folder import load_tensors
from orchestrator.outputs.export import export
from search_spaces.domains import build

KNOBS: dict[str, Any] = {"ways": 3, "shots": 1, "queries": 2, "tasks": 1}
METHODS = ("prototypical", "cosine_classifier")
TASK = FewShotTask(ways=3, shots=1, queries=3, episodes=20, cross_validate=True)


def drawings(groups: int = 3, each: int = 4, per_class: int = 6, seed: int = 0) -> ImageSet:
    """Noisy patterns, 8 x 8: ``groups`` alphabets of ``each`` characters."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups * each), per_class).astype(np.int64)
    pattern = rng.uniform(0, 255, (groups * each, 8, 8, 1))
    pixels = (pattern[label] + rng.normal(0, 60, (len(label), 8, 8, 1))).clip(0, 255).astype(np.uint8)
    names = tuple(f"alphabet {k // each}/{k % each} of {seed}" for k in range(groups * each))
    return ImageSet(ArrayImages(pixels), label, names, label // each, tuple(f"alphabet {g}" for g in range(groups)), flip=False)


@pytest.fixture
def setup(tmp_path: Path) -> SlotSetup:
    return SlotSetup(
        split=TASK.divide(Source(drawings()), "none", TASK.protocol(), 0),
        methods={name: CATALOGUE[name] for name in METHODS},
        encoder=EncoderSpec("conv4"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=TASK.protocol(),
        objective=None,
        top=Fidelity("epochs", 2),
        epoch_images=27,
        precision="fp32",
        seed=0,
        task=TASK,
        storage=LocalStorage(tmp_path),
        threads=1,
    )


def spec(method: str = "prototypical", key: str = "9", purpose: Any = "search", parent: str | None = None) -> TrialSpec:
    knobs = {"batch_size": 16} if method == "cosine_classifier" else KNOBS
    return TrialSpec(key, 9, method, knobs, 5, purpose, parent=parent)


def drive(
    setup: SlotSetup, work: TrialSpec, *stops: int, start: str | None = None, run: SegmentRun | None = None
) -> list[Report]:
    """The reports of a slot that begins once and goes on in place to the last of the stops, by default epochs 1 and 2."""
    to, *onward = (Fidelity("epochs", stop) for stop in stops or (1, 2))
    run = run or SegmentRun(setup, World())
    run.begin(Assignment(work, Segment(work.key, to, start, tuple(onward))))
    reports = [run.advance()]
    while reports[-1].status != "failed" and reports[-1].done != (to, *onward)[-1]:
        reports.append(run.advance())
    return reports


def checkpoint(reports: list[Report]) -> str:
    assert reports[-1].checkpoint is not None, reports[-1].reason
    return reports[-1].checkpoint


def state(setup: SlotSetup, reports: list[Report]) -> dict[str, Any]:
    return load_tensors(setup.storage, checkpoint(reports), "cpu")["training"]


def flat(value: Any) -> list[Any]:
    """All leaves, tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *flat(value[key]))]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_the_mean_over_folds_trained_each_on_its_own(setup: SlotSetup, method: str) -> None:
    reports = drive(setup, spec(method))
    assert [r.status for r in reports] == ["reached", "reached"], reports[-1].reason
    alone: list[list[float]] = []
    losses: list[list[float]] = []
    for fold in setup.split.folds:
        settings = TrainSettings(2, setup.encoder, 5, 27, "fp32")
        config = build(CATALOGUE[method].config, dict(spec(method).values))
        training = Training(CATALOGUE[method], config, fold.train, settings)
        losses.append([training.train_epoch().parts["loss"]])
        alone.append([setup.protocol.score(trained(training), fold.labelled, fold.validation, 0).value])
        losses[-1].append(training.train_epoch().parts["loss"])
        alone[-1].append(setup.protocol.score(trained(training), fold.labelled, fold.validation, 0).value)
    rungs = [r.rung for r in reports if r.rung is not None]
    assert [r.epoch for r in rungs] == [1, 2]
    assert [r.value for r in rungs] == pytest.approx(np.mean(alone, axis=0).tolist(), abs=1e-12)
    assert [r.parts["loss"] for r in reports] == pytest.approx(np.mean(losses, axis=0).tolist(), rel=1e-6)
    assert len({tuple(values) for values in alone}) > 1, "the folds differ"
    assert {(r.n, r.scored_on) for r in rungs} == {(60, "folds")}
    assert all(r.low < r.value < r.high for r in rungs)


def assert_ends_alike(setup: SlotSetup, found: list[Report], whole: list[Report]) -> None:
    last, expected = found[-1].rung, whole[-1].rung
    assert last is not None
    assert expected is not None
    assert (last.value, last.low, last.high, dict(found[-1].parts)) == (
        *(expected.value, expected.low, expected.high),
        dict(whole[-1].parts),
    )
    assert np.array_equal(np.asarray(last.units), np.asarray(expected.units))
    assert len(state(setup, whole)["folds"]) == 2
    assert flat(state(setup, found)) == flat(state(setup, whole))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heard", [True, False])
def test_a_stopped_cross_validation_goes_on_exactly(setup: SlotSetup, method: str, heard: bool) -> None:
    """Also where the study died before it heard of the segment's end, which is then trained again."""
    whole = drive(setup, spec(method, "0"))
    first = drive(setup, spec(method, "1"), 1)
    if not heard:
        drive(setup, spec(method, "1"), 2, start=checkpoint(first))
    resumed = drive(setup, spec(method, "1"), 2, start=checkpoint(first))
    assert [r.epoch for r in resumed] == [2]
    assert_ends_alike(setup, resumed, whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_slot_that_holds_all_folds_goes_on_without_loading(setup: SlotSetup, method: str) -> None:
    whole = drive(setup, spec(method, "0"))
    run = SegmentRun(setup, World())
    first = drive(setup, spec(method, "1"), 1, run=run)
    setup.storage.delete(checkpoint(first))
    assert_ends_alike(setup, drive(setup, spec(method, "1"), 2, start=checkpoint(first), run=run), whole)


def test_a_fork_adopts_every_folds_weights(setup: SlotSetup) -> None:
    """With its parent's knobs and seed it goes on as its parent does."""
    whole = drive(setup, spec(key="0"))
    fork = drive(setup, spec(key="1", parent="0"), 2, start="trials/0/checkpoint-1.pt")
    assert checkpoint(fork) == "trials/1/checkpoint-2.pt"
    assert_ends_alike(setup, fork, whole)


def test_the_refit_trains_one_model_on_all_groups(setup: SlotSetup) -> None:
    work = spec("cosine_classifier", purpose="refit")
    reports = drive(setup, work)
    assert all(r.rung is None for r in reports)
    path = checkpoint(reports)
    assert "folds" not in state(setup, reports)
    model = load_training(setup, work, path, torch.device("cpu")).learner.predictor()
    assert model is not None
    assert model(setup.split.train.images.take(torch.arange(2))).shape == (2, 12)
    # Of the training classes alone, so that it is not exported and prediction embeds.
    whole = trained(load_training(setup, work, path, torch.device("cpu")))
    export(whole, setup, setup.storage, "best/")
    assert setup.storage.list("best/") == ["best/encoder.pt"]
    test = split_few_shot(Source(drawings()), test=drawings(seed=1)).test
    assert test is not None
    assert examine(setup, work, path, test, torch.device("cpu")).n == 20


def test_a_cross_validated_model_is_that_of_its_first_fold(setup: SlotSetup) -> None:
    """What a finalist whose every refit failed can still show."""
    work = spec("cosine_classifier", purpose="fold")
    reports = drive(setup, work)
    training = load_training(setup, work, checkpoint(reports), torch.device("cpu"))
    assert training.data.classes == setup.split.folds[0].train.classes == 8
    own, saved = training.learner.state_dict(), state(setup, reports)
    assert all(torch.equal(own[name], value) for name, value in saved["learner"].items())
    assert any(not torch.equal(own[name], value) for name, value in saved["folds"][0]["learner"].items())


def test_a_fold_that_fails_fails_the_trial_in_one_line(setup: SlotSetup) -> None:
    wide = dataclasses.replace(setup, protocol=protocol("few_shot", ways=5, shots=1, queries=3, episodes=20))
    (report,) = drive(wide, spec())
    assert report.status == "failed"
    assert "5-way episodes need 5 classes" in report.reason
    assert "\n" not in report.reason
