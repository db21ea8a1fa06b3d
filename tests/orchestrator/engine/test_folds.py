"""Cross-validation by group inside a worker: the turns train in lockstep, score as one, and resume exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.storage import LocalStorage
from methods.batch import EpisodeShape
from methods.catalogue import CATALOGUE
from methods.data.episodic import split_few_shot
from methods.data.records import ArrayImages, ImageSet, Source
from methods.parts.encoders import EncoderSpec
from methods.protocols import protocol
from methods.training import Training, TrainSettings
from methods.world import World
from orchestrator.engine.records import Report, SlotSetup, TrialSpec
from orchestrator.engine.trial import TrialRun, examine, load_training, trained
from orchestrator.folder import load_tensors
from orchestrator.outputs.export import export
from search_spaces.domains import build

KNOBS: dict[str, Any] = {"ways": 3, "shots": 1, "queries": 2, "tasks": 1}
METHODS = ("prototypical", "cosine_classifier")


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
        split=split_few_shot(Source(drawings()), test="none", cross_validate=EpisodeShape(1, 3, 1, 3)),
        methods={name: CATALOGUE[name] for name in METHODS},
        encoder=EncoderSpec("conv4"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=protocol("few_shot", ways=3, shots=1, queries=3, episodes=20),
        objective=None,
        rungs=(1, 2),
        epoch_images=27,
        precision="fp32",
        seed=0,
        folder=str(tmp_path),
        threads=1,
    )


def job(method: str = "prototypical", key: str = "9", checkpoint: str | None = None, purpose: Any = "search") -> TrialSpec:
    knobs = {"batch_size": 16} if method == "cosine_classifier" else KNOBS
    return TrialSpec(key, 9, method, knobs, 5, purpose, checkpoint)


def drive(setup: SlotSetup, work: TrialSpec, until: int = 99) -> list[Report]:
    run = TrialRun(setup, World())
    run.begin(work)
    reports = [run.advance()]
    while reports[-1].status == "running" and reports[-1].epoch < until:
        reports.append(run.advance())
    return reports


def state(setup: SlotSetup, reports: list[Report]) -> dict[str, Any]:
    assert reports[-1].checkpoint is not None
    return load_tensors(LocalStorage(setup.folder), reports[-1].checkpoint, "cpu")["training"]


def flat(value: Any) -> list[Any]:
    """All leaves, tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *flat(value[key]))]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_the_mean_over_turns_trained_each_on_its_own(setup: SlotSetup, method: str) -> None:
    reports = drive(setup, job(method))
    assert [r.status for r in reports] == ["running", "finished"], reports[-1].reason
    alone: list[list[float]] = []
    losses: list[list[float]] = []
    for turn in setup.split.turns:
        settings = TrainSettings(2, setup.encoder, 5, 27, "fp32")
        config = build(CATALOGUE[method].config, dict(job(method).values))
        training = Training(CATALOGUE[method], config, turn.train, settings)
        losses.append([training.train_epoch().parts["loss"]])
        alone.append([setup.protocol.score(trained(training), turn.labelled, turn.validation, 0).value])
        losses[-1].append(training.train_epoch().parts["loss"])
        alone[-1].append(setup.protocol.score(trained(training), turn.labelled, turn.validation, 0).value)
    rungs = [r.rung for r in reports if r.rung is not None]
    assert [r.epoch for r in rungs] == [1, 2]
    assert [r.value for r in rungs] == pytest.approx(np.mean(alone, axis=0).tolist(), abs=1e-12)
    assert [r.parts["loss"] for r in reports] == pytest.approx(np.mean(losses, axis=0).tolist(), rel=1e-6)
    assert len({tuple(values) for values in alone}) > 1, "the turns differ"
    assert {(r.n, r.scored_on) for r in rungs} == {(60, "turns")}
    assert all(r.low < r.value < r.high for r in rungs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heard", [True, False])
def test_a_stopped_cross_validation_goes_on_exactly(setup: SlotSetup, method: str, heard: bool) -> None:
    whole = drive(setup, job(method, "0"))
    first = drive(setup, job(method, "1"), until=1 if heard else 99)
    resumed = drive(setup, job(method, "1", first[-1].checkpoint))
    assert [r.epoch for r in resumed] == list(range(first[-1].epoch, 3))
    last, expected = resumed[-1].rung, whole[-1].rung
    assert last is not None
    assert expected is not None
    assert (last.value, last.low, last.high, dict(resumed[-1].parts)) == (
        *(expected.value, expected.low, expected.high),
        dict(whole[-1].parts),
    )
    assert len(state(setup, whole)["turns"]) == 2
    assert flat(state(setup, resumed)) == flat(state(setup, whole))


def test_the_refit_trains_one_model_on_all_groups(setup: SlotSetup) -> None:
    reports = drive(setup, job("cosine_classifier", purpose="refit"))
    assert all(r.rung is None for r in reports)
    path = reports[-1].checkpoint
    assert path is not None
    assert "turns" not in state(setup, reports)
    work = job("cosine_classifier", purpose="refit")
    model = load_training(setup, work, path, torch.device("cpu")).learner.predictor()
    assert model is not None
    assert model(setup.split.train.images.take(torch.arange(2))).shape == (2, 12)
    # Of the training classes alone, so that it is not exported and prediction embeds.
    whole = trained(load_training(setup, work, path, torch.device("cpu")))
    export(whole, setup, LocalStorage(setup.folder))
    assert (Path(setup.folder) / "encoder.pt").is_file()
    assert not (Path(setup.folder) / "predictor.pt").exists()
    test = split_few_shot(Source(drawings()), test=drawings(seed=1)).test
    assert test is not None
    assert examine(setup, work, path, test, torch.device("cpu")).n == 20


def test_a_cross_validated_model_is_that_of_its_first_turn(setup: SlotSetup) -> None:
    """What a finalist whose every refit failed can still show."""
    reports = drive(setup, job("cosine_classifier", purpose="retrain"))
    path = reports[-1].checkpoint
    assert path is not None
    training = load_training(setup, job("cosine_classifier", purpose="retrain"), path, torch.device("cpu"))
    assert training.data.classes == setup.split.turns[0].train.classes == 8


def test_a_turn_that_fails_fails_the_trial_in_one_line(setup: SlotSetup) -> None:
    wide = dataclasses.replace(setup, protocol=protocol("few_shot", ways=5, shots=1, queries=3, episodes=20))
    (report,) = drive(wide, job())
    assert report.status == "failed"
    assert "5-way episodes need 5 classes" in report.reason
    assert "\n" not in report.reason
