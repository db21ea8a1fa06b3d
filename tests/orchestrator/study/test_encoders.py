"""A study that compares encoders: which combinations there are, who is offered which, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from methods.catalogue import CATALOGUE
from methods.encoder import EncoderSpec
from orchestrator.folder import dump_study
from orchestrator.study import Study, StudyError, parse_study
from orchestrator.study.encoders import line_of
from orchestrator.study.extensions import in_python

BASE: dict[str, Any] = {"data": "digits", "methods": ["supervised"]}


def labels(**fields: Any) -> dict[str, tuple[str, ...]]:
    study = Study(**{**BASE, **fields})
    return study.offered(study.catalogue())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"encoder": "lite0"},
        {"encoder": ["lite0"]},
        {"encoder": "lite0", "init": "own"},
        {"encoder": "lite0", "init": ["own"]},
        {"encoder": "resnet_small", "init": ["own", "none"]},
        {"methods": ["mae", "supervised"]},
        {"methods": ["linear_probe"], "encoder": "conv4"},
    ],
)
def test_one_encoder_with_one_start_is_no_comparison(fields: dict[str, Any]) -> None:
    study = Study(**{**BASE, **fields})
    assert study.offered(study.catalogue()) == {}
    assert study.compared(study.catalogue()) == {}
    assert study.space().labels == ()
    assert study.encoders()[0].init is None


def test_a_list_of_one_is_written_as_the_one() -> None:
    study = Study(**BASE, encoder=["lite0"], init=["none"])
    assert dump_study(study) == dump_study(Study(**BASE, encoder="lite0", init="none"))
    assert study.encoders()[0] == EncoderSpec("lite0", "none")


@pytest.mark.parametrize(
    ("encoder", "init", "expected"),
    [
        (["resnet_small", "conv4"], None, ["resnet_small", "conv4"]),
        (["resnet_small", "conv4"], "none", ["resnet_small", "conv4"]),
        ("lite0", ["own", "none"], ["lite0", "lite0 from none"]),
        ("lite0", [None, "none"], ["lite0", "lite0 from none"]),
        (["lite0", "resnet_small"], ["own", "none"], ["lite0", "lite0 from none", "resnet_small"]),
        (["lite0", "resnet_small"], ["none"], ["lite0 from none", "resnet_small"]),
        ("resnet18", ["torchvision", "none"], ["resnet18 from torchvision", "resnet18"]),
        (["resnet18", "conv4"], ["torchvision", "own"], ["resnet18 from torchvision", "resnet18", "conv4"]),
        (["torchvision/resnet18", "lite0"], ["own", "torchvision"], ["torchvision/resnet18", "lite0"]),
        (["conv4", "runs/a"], ["own", "runs/b"], ["conv4", "conv4 from runs/b", "runs/a"]),
    ],
)
def test_combinations_that_make_sense_each_once(
    encoder: Any, init: Any, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert labels(encoder=encoder, init=init) == {"supervised": tuple(expected)}


def test_each_label_stands_for_its_encoder_and_start() -> None:
    study = Study(**BASE, encoder=["lite0", "conv4"], init=["own", "none"], encoder_size=96)
    found = study.compared(study.catalogue())
    # What sees images as large as they are has no size.
    expected = {"lite0": (None, 96), "lite0 from none": ("none", 96), "conv4": (None, None)}
    assert {label: (spec.init, spec.size) for label, spec in found.items()} == expected
    assert [spec.name for spec in found.values()] == ["lite0", "lite0", "conv4"]
    assert [line_of(spec) for spec in found.values()][1:] == ["lite0", "conv4"]
    assert line_of(found["lite0"]).startswith("lite0, starting from ImageNet")


def test_a_method_is_offered_what_it_can_use(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.touch()
    found = labels(
        methods=["linear_probe", "supervised", "mae"], encoder=["resnet_small", "lite0", str(file)], init=["own", "none"]
    )
    assert found == {
        "linear_probe": ("lite0", str(file)),
        "supervised": ("resnet_small", "lite0", "lite0 from none"),
        "mae": ("vit_tiny",),
    }
    assert set(Study(**BASE, encoder=["lite0", "conv4"]).compared(CATALOGUE)) == {"lite0", "conv4", "vit_tiny"}


def test_where_no_encoder_has_weights_features_are_of_random_ones_as_with_one_encoder() -> None:
    assert labels(methods=["linear_probe"], encoder=["conv4", "resnet_small"]) == {"linear_probe": ("conv4", "resnet_small")}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"encoder": []}, r"encoder: must name at least one encoder, got \[\]"),
        ({"init": []}, r"init: must name at least one start, got \[\]"),
        ({"encoder": ["lite0", "conv4", "lite0"]}, "encoder: must name each encoder once, but lite0 stands there twice"),
        ({"init": ["none", None, "own"]}, "init: must name each start once, but own stands there twice"),
        ({"encoder": ["lite0", 3]}, r"encoder: must be a name, a file, or a list of these, got \['lite0', 3\]"),
        ({"init": [3]}, r"init: must be a name, a file, or a list of these, got \[3\]"),
        ({"encoder": ["lite0", "conv5"]}, "encoder: conv5 is not an encoder; did you mean conv4"),
        ({"encoder": ["lite0", "torchvision/resnet_18"]}, "encoder: torchvision/resnet_18 is not an encoder; did you mean"),
        ({"encoder": ["lite0", "nowhere.onnx"]}, r"encoder: nowhere\.onnx is not an encoder"),
        (
            {"encoder": ["resnet18", "conv4"], "init": "torchvision"},
            "encoder conv4 has none of torchvision's, got init torchvision; add own to init",
        ),
        (
            {"encoder": ["conv4", "FILE"], "init": "none"},
            r"encoder .*net\.pt has weights of its own, got init none; add own to init",
        ),
        (
            {"encoder": ["conv4", "resnet_small"], "init": ["own", "torchvision"]},
            "init torchvision fits none of the encoders conv4, resnet_small; leave it out",
        ),
        (
            {"methods": ["linear_probe"], "encoder": ["conv4", "lite0"]},
            "encoder conv4 suits none of the methods linear_probe: .* leave it out, or add a method that can use it",
        ),
        ({"methods": ["mae"], "encoder": ["conv4", "lite0"]}, "encoder conv4 suits none of the methods mae: "),
        (
            {"encoder": ["conv4", "lite0", "resnet_small"], "methods": ["supervised", "simclr"], "trials": 3},
            "trials must be at least 4, so that each method and encoder is tried once, got 3; raise it, or name fewer of them",
        ),
        ({"encoder": [nn.Flatten(), nn.Flatten()]}, "encoder: must name each encoder once, but Flatten stands there twice"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(fields: dict[str, Any], match: str, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    file.touch()
    if "FILE" in fields.get("encoder", ()):
        fields = {**fields, "encoder": [str(file) if name == "FILE" else name for name in fields["encoder"]]}
    with pytest.raises(StudyError, match=match) as error:
        Study(**{**BASE, **fields})
    assert "\n" not in str(error.value)


def test_a_comparison_survives_its_run_folder() -> None:
    study = Study(**BASE, encoder=["lite0", "conv4"], init=["own", "none"])
    written = dump_study(study)
    assert yaml.safe_load(written)["encoder"] == ["lite0", "conv4"]
    again = parse_study(written, "study.yaml", "study")
    assert dump_study(again) == written
    assert again.compared(again.catalogue()) == study.compared(study.catalogue())


def test_networks_of_ones_own_are_compared_from_their_script() -> None:
    mine = nn.Flatten()
    study = Study(**BASE, encoder=[mine, "conv4"])
    found = study.compared(study.catalogue())
    assert list(found) == ["Flatten", "conv4"]
    assert found["Flatten"].module is mine
    kept = parse_study(dump_study(study), "study.yaml", "study")
    assert yaml.safe_load(dump_study(study))["encoder"] == [in_python("network"), "conv4"]
    with pytest.raises(StudyError, match="this study's network was given in Python, and its run folder cannot hold it"):
        kept.check_objective()
