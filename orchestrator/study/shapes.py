"""JSON Schemas of what a study file may hold where the types of Python say more, or less, than the file can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAME = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""``module:Name`` as a regular expression."""

OWN: dict[str, Any] = {"type": "string", "pattern": f"^{NAME}$"}
"""The same as a JSON Schema."""


def choice_schema(names: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of one name, of ours or of code of one's own, or of one name with its settings."""
    either: dict[str, Any] = {"anyOf": [{"enum": sorted(names)}, OWN]}
    settings = {"type": ["object", "null"]}
    one = {"type": "object", "propertyNames": either, "additionalProperties": settings, "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [*either["anyOf"], one]}


def one_or_more_schema(names: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of one name, of ours or of code of one's own, or of a list of such names."""
    one: dict[str, Any] = {"anyOf": [{"enum": sorted(names)}, OWN]}
    return {"anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}


_VALUE: dict[str, Any] = {"type": ["number", "string", "boolean"]}
_SWITCHES = {"log": {"type": "boolean"}, "log1m": {"type": "boolean"}, "power_of_two": {"type": "boolean"}}
_RANGE = {"low": {"type": "number"}, "high": {"type": "number"}, **_SWITCHES}
_CHOICES = {"type": "array", "items": _VALUE, "minItems": 1}
OVERRIDES: dict[str, Any] = {
    "type": ["object", "null"],
    "propertyNames": {"pattern": r"^[^.]+\.[^.]+$"},
    "additionalProperties": {
        "anyOf": [
            _VALUE,
            _CHOICES,
            {"type": "object", "properties": _RANGE, "required": ["low", "high"], "additionalProperties": False},
            {"type": "object", "properties": {"choices": _CHOICES}, "required": ["choices"], "additionalProperties": False},
        ]
    },
}
"""Of the field ``search``."""
