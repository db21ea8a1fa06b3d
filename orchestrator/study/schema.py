"""The JSON Schema of a study file, made from the fields and the "Attributes:" of their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from methods.tasks import FewShotTask
from orchestrator.study.budget import Spending
from orchestrator.study.health import Limit
from orchestrator.study.load import PRESETS
from orchestrator.study.selection import ModelCost, Selection
from orchestrator.study.shapes import choice_schema
from orchestrator.study.study import BLANK, ORDER, Study

DRAFT = "https://json-schema.org/draft/2020-12/schema"

_NAMES = re.compile(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)")


def attributes(kind: type) -> dict[str, str]:
    """What the "Attributes:" section of a class, and of its bases, says of each of its fields."""
    found: dict[str, str] = {}
    for owner in (base for base in reversed(kind.__mro__) if base is not BaseModel):
        _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        names: list[str] = []
        for line in section.splitlines():
            entry = _NAMES.fullmatch(line.strip()) if re.match(r" {4}\S", line) else None
            if entry:
                names = entry[1].split(", ")
                found.update(dict.fromkeys(names, entry[2]))
            elif line.startswith(" " * 5):
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
            elif line.strip():
                break
    return found


def study_schema(names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The schema (draft 2020-12) of a study file.

    Args:
        names: those that the fields ``strategy``, ``allocation`` and ``sampler`` take.
    """
    made = Study.model_json_schema(schema_generator=_Plain)
    properties = made["properties"]
    # Nothing given is not the same as every budget at its default, since then trials count.
    del properties["budget"]["default"]
    for field, known in names.items():
        properties[field] |= choice_schema(known)
    properties["earlier"] = {"anyOf": [{"type": "string"}, properties["earlier"]]}
    for name in (*BLANK, FewShotTask.name, "budget", "epochs"):
        properties[name] = _or_nothing(properties[name])
    _describe(properties, Study)
    for kind in (Spending, FewShotTask, Selection, ModelCost, Limit):
        _describe(made["$defs"][kind.__name__]["properties"], kind)
    return {
        "$schema": DRAFT,
        "title": "labelwise study",
        "description": "A study file: every field may be left out but data.",
        "type": "object",
        "properties": {name: properties[name] for name in ORDER},
        "required": ["data"],
        "additionalProperties": False,
        "$defs": {
            **made["$defs"],
            "preset": {
                "description": "The ready-made studies that 'labelwise run NAME' knows.",
                "enum": sorted(file.stem for file in PRESETS.glob("*.yaml")),
            },
        },
    }


class _Plain(GenerateJsonSchema):
    """Without titles, which would repeat the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _describe(properties: dict[str, Any], kind: type) -> None:
    said = attributes(kind)
    for name, schema in properties.items():
        schema["description"] = said[name].replace("``", "")


def _or_nothing(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or an empty line, which leaves the field at its default."""
    if any(each.get("type") == "null" for each in schema.get("anyOf", ())) or "null" in schema.get("type", ()):
        return schema
    default = {"default": schema.pop("default")} if "default" in schema else {}
    return {"anyOf": [schema, {"type": "null"}], **default}
