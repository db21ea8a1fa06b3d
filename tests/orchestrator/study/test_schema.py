"""The study file's JSON Schema: it takes what a study takes, refuses misspelt fields, describes each by its docstring."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from methods.catalogue import CATALOGUE
from methods.health import SIGNALS
from methods.parts.encoders import ENCODERS
from methods.protocols import PROTOCOLS
from orchestrator.choices import NAMES
from orchestrator.study import PRESETS, FewShotTask, Limit, ModelCost, Selection, Spending, Study
from orchestrator.study.schema import attributes, study_schema
from orchestrator.study.study import ORDER

SCHEMA = study_schema(NAMES)
CHECK = Draft202012Validator(SCHEMA)


def test_it_is_a_schema_of_every_field_with_a_description() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert list(SCHEMA["properties"]) == list(ORDER)
    assert set(ORDER) == set(Study.model_fields)
    for part in (SCHEMA, *(SCHEMA["$defs"][kind.__name__] for kind in (Spending, FewShotTask, Selection, ModelCost, Limit))):
        assert part["additionalProperties"] is False
        assert all(field["description"] for field in part["properties"].values())
    assert "own" not in SCHEMA["$defs"]["Spending"]["properties"]


def test_every_field_is_described_by_its_owner_alone() -> None:
    for kind in (Study, Spending, Selection, ModelCost, Limit):
        assert set(attributes(kind)) == set(kind.model_fields), kind
    assert {field.name for field in fields(FewShotTask)} <= set(attributes(FewShotTask))


def test_attributes_reads_several_names_and_continued_lines() -> None:
    class Two:
        """Words.

        Attributes:
            low, high: bounds: of it
                and more.
            plain: one line.

        Raises:
            other: not a field.
        """

    assert attributes(Two) == {"low": "bounds: of it and more.", "high": "bounds: of it and more.", "plain": "one line."}


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_presets_are_valid_and_a_misspelt_field_is_not(preset: Any) -> None:
    raw = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert CHECK.is_valid(raw), list(CHECK.iter_errors(raw))
    assert not CHECK.is_valid({**raw, "trails": 3})
    assert not CHECK.is_valid({**raw, "selection": {"tops": 3}})
    assert not CHECK.is_valid({key: value for key, value in raw.items() if key != "data"})
    assert preset.stem in SCHEMA["$defs"]["preset"]["enum"]


GOOD: list[dict[str, Any]] = [
    {},
    {"methods": list(CATALOGUE)},
    {"methods": "simclr"},
    {"methods": ["own.rules:mine", "simclr"]},
    {"strategy": "asha_stopping"},
    {"strategy": {"own.rules:RoundRobin": {"turns": 2}}},
    {"budget": {"minutes": 5, "trials": 16, "labels": 250}},
    {"budget": {"own.rules:Joules": 60}},
    {"budget": None, "search": None, "stop": None, "selection": None, "few_shot": None},
    {"seconds": 60},
    {"test": 0.25, "labels": 250},
    {"stop": {signal: {"below": 0.1} for signal in SIGNALS}},
    {"protocol": {"linear": {"head": "logistic"}}},
    {"search": {"simclr.temperature": {"low": 0.1, "high": 1, "log": True}, "*.batch_size": [32, 64], "*.lr": 0.1}},
    {"earlier": "runs/a"},
    *({"protocol": name} for name in PROTOCOLS),
    *({"encoder": name} for name in ENCODERS),
    {"encoder": ["lite0", "torchvision/resnet18", "net.onnx"], "init": ["own", "none", None, "runs/a"]},
    {"init": "none"},
    {"init": None},
    {"methods": None},
]

BAD: list[dict[str, Any]] = [
    {"methods": "simclt"},
    {"methods": []},
    {"methods": ["simclr", "simclr"]},
    {"encoder": "resnet_smal"},
    {"encoder": []},
    {"encoder": ["lite0", "lite0"]},
    {"encoder": ["lite0", 3]},
    {"init": []},
    {"init": 3},
    {"protocol": "linea"},
    {"protocol": {"linea": {}}},
    {"protocol": {"linear": {}, "knn": {}}},
    {"strategy": "ahsa"},
    {"strategy": 3},
    {"budget": {"minuts": 5}},
    {"budget": {"minutes": 0}},
    {"budget": {"trials": 1.5}},
    {"seconds": 0},
    {"stop": {"embeding_sd": {"below": 0.1}}},
    {"stop": {"embedding_sd": {"blow": 0.1}}},
    {"few_shot": {"way": 5}},
    {"test": 1.5},
    {"epochs": 0},
    {"search": {"temperature": 1}},
    {"search": {"simclr.temperature": {"low": 0.1, "hihg": 1}}},
    {"keep_groups": "yes"},
    {"task": "few-shot"},
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_good_fields(fields: dict[str, Any]) -> None:
    assert CHECK.is_valid({"data": "digits", **fields}), list(CHECK.iter_errors({"data": "digits", **fields}))


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_bad_fields(fields: dict[str, Any]) -> None:
    assert not CHECK.is_valid({"data": "digits", **fields})


def test_resolved_studies_are_valid() -> None:
    for study in (
        Study(data="digits"),
        Study(data="glyphs", task="few_shot", methods=["simclr"], seconds=60, budget={"minutes": 1}),
    ):
        assert CHECK.is_valid(study.resolved()), list(CHECK.iter_errors(study.resolved()))


@pytest.mark.parametrize("encoder", ["lite0", "torchvision/resnet18", "timm/vit_tiny_patch16_224", "net.onnx", "runs/mine"])
def test_an_encoder_is_a_name_one_of_a_library_or_a_file(encoder: str) -> None:
    assert CHECK.is_valid({"data": "digits", "encoder": encoder})
    assert not CHECK.is_valid({"data": "digits", "encoder": "resnet_tiny"})
