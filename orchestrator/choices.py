"""What a study chooses by name, made from its name and settings: strategy, allocation, sampler."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, cast

from optuna.samplers import BaseSampler
from pydantic import TypeAdapter, ValidationError

from orchestrator.allocation import ALLOCATIONS, Allocation, JointTpe
from orchestrator.samplers import SAMPLERS, OwnOptuna, Sampler, Tpe
from orchestrator.strategies import STRATEGIES, Strategy
from orchestrator.study import Study, StudyError
from orchestrator.study.extensions import Extension
from search_spaces.domains import nearest

NAMES = {"strategy": list(STRATEGIES), "allocation": list(ALLOCATIONS), "sampler": list(SAMPLERS)}
"""By the field that takes them."""


def strategy_of(study: Study) -> Strategy:
    """The study's strategy. Raises StudyError on an unknown name (the near ones shown) or setting."""
    # Files of before the strategy had a name give its reduction beside it.
    return cast(Strategy, _made("strategy", study.choice("strategy"), STRATEGIES, {"reduction": study.reduction}))


def allocation_of(study: Study) -> Allocation | JointTpe:
    """The study's allocation. Raises StudyError as ``strategy_of``, and where a sampler is named that it would not ask."""
    found: Allocation | JointTpe = _made("allocation", study.choice("allocation"), ALLOCATIONS, {})
    if isinstance(found, JointTpe) and sampler_of(study) != Tpe():
        others = ", ".join(name for name in ALLOCATIONS if ALLOCATIONS[name] is not JointTpe)
        raise StudyError(
            "allocation tpe models methods and knobs together and asks no sampler, got sampler"
            f" {study.plain_choice('sampler')!r}; leave sampler out or give another allocation: {others}"
        )
    return found


def sampler_of(study: Study) -> Sampler:
    """The study's sampler. Raises StudyError as ``strategy_of``."""
    given = study.sampler
    if isinstance(given, Extension) and inspect.isclass(given.target) and issubclass(given.target, BaseSampler):
        return OwnOptuna(given.target, dict(given.settings or {}))
    found = _made("sampler", study.choice("sampler"), SAMPLERS, {})
    return found if isinstance(found, Sampler) else OwnOptuna(found)


def _made(field: str, chosen: Any, table: Mapping[str, type], inherited: Mapping[str, Any]) -> Any:
    """The object that a study chose: its own as it is, or ours by name with its settings."""
    if not isinstance(chosen, tuple):
        return chosen
    name, settings = chosen
    if name not in table:
        raise StudyError(f"{name} is not {_a(field)}{nearest(name, table)}")
    kind = table[name]
    known = {each.name for each in dataclasses.fields(kind)}
    unknown = next((key for key in settings if key not in known), None)
    if unknown is not None:
        raise StudyError(f"{field}.{name}.{unknown} is not a setting{nearest(unknown, known)}")
    given = {**{key: value for key, value in inherited.items() if key in known}, **settings}
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (field, name, *first["loc"]))
        raise StudyError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}") from None


def _a(field: str) -> str:
    return f"an {field}" if field[0] in "aeiou" else f"a {field}"
