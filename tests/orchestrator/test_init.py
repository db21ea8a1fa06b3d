"""A self-supervised start for any row: methods that learn from labels begin at the weights an earlier study left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.plan import ResourcePlan
from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.data.records import Split
from methods.parts.averaged import AveragedEncoder
from methods.parts.encoders import EncoderSpec, build_encoder, save_encoder
from methods.parts.joined import JoinedEncoder
from methods.parts.pair import PairEncoder
from methods.training import Training, TrainSettings
from methods.world import World
from orchestrator.engine.records import TrialSpec
from orchestrator.engine.selection import Division
from orchestrator.engine.trial import training_of
from orchestrator.folder import RunFolder
from orchestrator.prepare import Prepared
from orchestrator.run import run
from orchestrator.study import Study
from search_spaces.domains import UserError, build

SEMI = [name for name, m in CATALOGUE.items() if m.family in ("semisup", "baseline") or name == "simclr_v2"]


@pytest.fixture
def data(make_split: Callable[..., Split]) -> Split:
    return make_split(4, 10, 5, 12)


@pytest.fixture
def pretrained(data: Split, tmp_path: Path) -> RunFolder:
    """The run folder of a study whose winner is a SimCLR encoder of one epoch."""
    run = RunFolder.create(tmp_path / "pretraining", Study(data="digits", methods=["simclr"]))
    simclr = CATALOGUE["simclr"]
    training = Training(simclr, build(simclr.config, {"batch_size": 16}), data.train, TrainSettings(1, EncoderSpec(), 3, 32))
    training.train_epoch()
    save_encoder(run.path / "best" / "encoder.pt", training.learner.encoder())
    return run


def weights(training: Training) -> list[dict[str, Tensor]]:
    """Of the encoder, or of both that stand side by side: weights and running statistics.

    Without the data's own mean and deviation, and without BatchNorm's counters of passes, which no computation reads.
    """
    encoder = training.learner.encoder()
    halves = (encoder.first, encoder.second) if isinstance(encoder, PairEncoder) else (encoder,)
    return [learned(half.state_dict()) for half in halves]


def learned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if v.is_floating_point() and not k.startswith("normalise.")}


def start(name: str, run: RunFolder, data: Split, **values: object) -> Training:
    """The training that a study with ``init: RUN FOLDER`` starts, before its first step."""
    study = Study(data="digits", methods=[name], init=str(run.path), epochs=1, epoch_images=48, reduction=1)
    plan = ResourcePlan(1, 1.0, 0.0, 1, 1, 1.0, 0.0, 1)
    prepared = Prepared(study, study.task_object(), study.scoring(), study.catalogue(), data, study.space(), Division(), 0.0)
    setup = prepared.setup(LocalStorage(run.path.parent / "next"), plan)
    return training_of(setup, TrialSpec("0", 0, name, {"batch_size": 16, **values}, 5), World())


@pytest.mark.parametrize("name", SEMI)
def test_a_method_starts_from_the_weights_of_a_run_folder(name: str, pretrained: RunFolder, data: Split) -> None:
    saved = torch.load(pretrained.path / "best" / "encoder.pt", weights_only=True)["state"]
    saved = learned(saved)
    training = start(name, pretrained, data)
    for begun in weights(training):
        assert begun.keys() == saved.keys()
        for key, value in begun.items():
            assert torch.equal(value, saved[key]), key
    assert training.train_epoch().finite
    for ended in weights(training):
        assert not torch.equal(ended["conv1.weight"], saved["conv1.weight"]), "it has learned on from there"


@pytest.mark.parametrize(("name", "student"), [("noisy_student", "model"), ("simclr_v2", "student")])
def test_a_student_of_another_width_starts_from_scratch(name: str, student: str, pretrained: RunFolder, data: Split) -> None:
    training = start(name, pretrained, data, student_width=0.5)
    usual = training.learner.encoder().dim
    assert training.train_epoch().finite
    assert getattr(training.learner, student).encoder.dim == usual // 2


def test_an_encoder_that_averages_over_views_starts_with_the_one_inside(data: Split, tmp_path: Path) -> None:
    """What the metric methods of a few-shot study leave; the views are no part of the weights."""
    inner = build_encoder(EncoderSpec(), data.train.images.shape, data.train.mean, data.train.std)
    save_encoder(tmp_path / "best" / "encoder.pt", AveragedEncoder(inner, 5))
    begun = start("supervised", RunFolder(LocalStorage(tmp_path)), data)
    expected = learned(inner.state_dict())
    found = learned(begun.learner.encoder().state_dict())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_encoder_composed_of_others_is_refused_in_one_line(data: Split, tmp_path: Path) -> None:
    members = [build_encoder(EncoderSpec(), data.train.images.shape, data.train.mean, data.train.std) for _ in range(2)]
    save_encoder(tmp_path / "best" / "encoder.pt", JoinedEncoder(members, unit=True))
    with pytest.raises(UserError, match=r"composed of others \(joined\), which cannot start a study; give another init"):
        start("supervised", RunFolder(LocalStorage(tmp_path)), data)


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_on_a_network_of_ones_own(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"methods": ["supervised", "co_training"], "trials": 2, "epochs": 1, "reduction": 1, "labels": 100}
    own = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 2))
    study = Study(data="digits", encoder=own, epoch_images=64, selection={"top": 1, "seeds": 1}, **shared)
    result = run(study, tmp_path / "run", quiet=True)
    assert set(result.leaderboard()["status"]) == {"finished"}
    best = result.winner()
    assert best.encoder == {"name": "a network given in Python", "weights": "none"}
    with pytest.raises(UserError, match="the winner's encoder is a class of your own; load its weights from"):
        best.load_encoder()
    assert "Encoder Sequential, starting from the weights it was given with" in (result.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "nowhere.pt"}, "a weights file must exist, got nowhere.pt; check the path"),
        (
            {"init": "torchvision"},
            "init torchvision is for resnet18, .*, got encoder resnet_small; use init none or one of those",
        ),
        ({"encoder": "timm/resnet18"}, r"timm/resnet18 needs timm, which is not installed; pip install 'labelwise\[timm\]'"),
        ({"encoder_size": 64}, "encoder resnet_small sees images as large as they are, got size 64; leave the size out"),
        ({"encoder": "README.md"}, "README.md is not a file of weights"),
        (
            {"init": "RUN", "methods": ["mae"]},
            "of encoder resnet_small, got encoder vit_tiny; .*, or leave out methods that need vit_tiny",
        ),
    ],
)
def test_starting_weights_are_tried_before_a_run_folder_is_made(
    settings: dict[str, object], message: str, pretrained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**settings, "init": str(pretrained.path) if settings.get("init") == "RUN" else settings.get("init")}
    if settings.get("encoder") == "timm/resnet18":
        for module in ("timm", "timm.data", "timm.models"):
            monkeypatch.setitem(sys.modules, module, None)
    study = Study(**{"data": "digits", "methods": ["supervised"], "trials": 1, "epochs": 1, "labels": 100, **settings})
    with pytest.raises(UserError, match=message):
        run(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()
