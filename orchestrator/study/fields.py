"""What all fields of a study share: strict records, errors in one line, and plain values for YAML."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from search_spaces.domains import UserError, nearest


class StudyError(UserError):
    """A study that cannot be run as it is written."""


class Strict(BaseModel):
    """A frozen record that takes no other type and no other field than it declares."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


def one_line(error: ValidationError, model: type[BaseModel], order: Sequence[str] = ()) -> str:
    """The first problem, by ``order`` of the fields, as a sentence: where, rule, value, remedy."""
    place = {name: i for i, name in enumerate(order)}
    errors = sorted(error.errors(), key=lambda e: place.get(str(e["loc"][0]), len(place)) if e["loc"] else -1)
    first = errors[0]
    if not first["loc"]:
        # Raised by the study's own rules, which are sentences already.
        return " ".join(first["msg"].removeprefix("Value error, ").split())
    where = ".".join(str(part) for part in first["loc"] if not _branch(str(part)))
    if first["type"] == "extra_forbidden":
        owner: type[BaseModel] = model
        for part in first["loc"][:-1]:
            # A part that is no field is a key of a mapping of models.
            if str(part) in owner.model_fields:
                inner = owner.model_fields[str(part)].annotation
                kinds = (inner, *get_args(inner))
                owner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), owner)
        return f"{where} is not a field of a study{nearest(str(first['loc'][-1]), owner.model_fields)}"
    if first["type"] == "missing":
        return f"a study needs the field '{where}', for example {where}: digits"
    rules = [e["msg"].removeprefix("Value error, ") for e in errors if e["loc"][0] == first["loc"][0] and not _unwritable(e)]
    rule = " or ".join(dict.fromkeys(r[0].lower() + r[1:] for r in rules))
    given = first["input"]
    return f"{where}: {rule}, got {reprlib.repr(given) if isinstance(given, np.ndarray) else repr(given)}"


def _unwritable(error: Any) -> bool:
    """Whether a rule asks for what only the loading of ``module:Name`` makes, so that no remedy lies in it."""
    return error.get("ctx", {}).get("class") == "Extension"


def _branch(part: str) -> bool:
    """Whether a part of pydantic's location names the branch of a union, and no field."""
    return part in ("str", "int", "[key]") or part.startswith(("literal", "function", "is-", "dict[", "mapping[", "tuple["))


def single(field: str, raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the settings of ``{NAME: settings}``, the value of ``field``."""
    if len(raw) != 1:
        raise StudyError(f"{field} must be a name or one name with its settings, got {dict(raw)!r}")
    ((name, settings),) = raw.items()
    if not isinstance(settings, Mapping | None):
        raise StudyError(f"{field} {name} takes settings as a mapping, got {settings!r}")
    return str(name), dict(settings or {})


def plain(value: Any) -> Any:
    """The value as YAML can hold it: mappings, lists and scalars; anything else in words."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def lost(what: str) -> str:
    """The sentence for something of a script that its run folder does not hold."""
    return (
        f"this study's {what} was given in Python, and its run folder cannot hold it; go on with it from the script that has"
        " it, by resume(DIR, study=study)"
    )


def listed(value: object) -> object:
    """A list as the tuple that a frozen record holds."""
    return tuple(value) if isinstance(value, list) else value


def one_or_more(value: object) -> object:
    """A list as a tuple, and a single name as a tuple of one."""
    return (value,) if isinstance(value, str) else listed(value)
