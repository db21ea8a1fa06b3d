"""Code of one's own in a study: ``module:Name`` in a study file, imported only where the command line allows its module.

A study file or a run folder is data, and nothing is imported because data says so.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from optuna.samplers import BaseSampler

from methods.contracts import Method
from methods.protocols.contract import Protocol
from methods.tasks.contract import Task
from orchestrator.allocation import Allocation
from orchestrator.budgets.contract import Budget
from orchestrator.samplers import Sampler
from orchestrator.strategies.contract import Strategy
from orchestrator.study.fields import StudyError
from orchestrator.study.shapes import NAME
from search_spaces.domains import UserError, nearest


@dataclass(frozen=True)
class Allowed:
    """The modules that a command may import for a study."""

    modules: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Extension:
    """Code of one's own that a study file names.

    Attributes:
        name: ``module:Name``, as the study file has it.
        target: what stands under that name: a class, or an object ready to use.
        settings: what the study file gives it: a mapping for keyword arguments, one plain value, or None for nothing.
    """

    name: str
    target: Any
    settings: Any = None

    def plain(self) -> str | dict[str, Any]:
        """As a study file has it."""
        return self.name if self.settings is None else {self.name: self.settings}

    def made(self) -> Any:
        """The object. Raises StudyError where it does not take its settings."""
        if not inspect.isclass(self.target):
            if self.settings:
                raise StudyError(f"{self.name} is an object that takes no settings, got {self.settings!r}; leave them out")
            return self.target
        try:
            make: Callable[..., Any] = self.target
            if isinstance(self.settings, Mapping):
                return make(**self.settings)
            return make() if self.settings is None else make(self.settings)
        except UserError as error:
            raise StudyError(f"{self.name}: {error}") from None
        except TypeError as error:
            raise StudyError(f"{self.name} does not take its settings {self.settings!r}: {_reason(error)}") from None


def in_python(what: str) -> str:
    """Stands in a run folder for something given in Python, which no file can hold."""
    return f"(a {what} given in Python)"


def left_behind(what: str, value: object) -> bool:
    """Whether a study read from a run folder has only the mark of what its script gave it."""
    return isinstance(value, str) and value == in_python(what)


CONTRACTS: dict[str, Any] = {
    "strategy": Strategy,
    "allocation": Allocation,
    "sampler": Sampler | BaseSampler,
    "budget": Budget,
    "task": Task,
    "methods": Method,
    "protocol": Protocol,
}
"""By the field that may name one: the class that code of one's own derives from."""


def named(value: object) -> bool:
    """Whether a value names code of one's own. No name of ours has a colon."""
    return isinstance(value, str) and ":" in value and not value.startswith("(")


def load(field: str, name: str, contract: Any, allowed: Allowed) -> Any:
    """What ``module:Name`` names.

    Args:
        field: the study's field, for the error's beginning.
        name: ``module:Name``.
        contract: what it must be.
        allowed: the modules that may be imported.
    Raises:
        StudyError: the module is not allowed or does not import, the name is not in it, or not of the contract.
    """
    if not re.fullmatch(NAME, name):
        raise StudyError(f"{field}: code of your own is written module:Name, got {name!r}")
    module, _, attribute = name.partition(":")
    if module not in allowed.modules:
        raise StudyError(f"{field}: {name} is code of your own; allow it with --import {module} on this command")
    owner = _imported(field, module)
    if not hasattr(owner, attribute):
        public = [each for each in vars(owner) if not each.startswith("_")]
        raise StudyError(f"{field}: {module} has no {attribute}{nearest(attribute, public) if public else ''}")
    target = getattr(owner, attribute)
    if missing := _missing(target, contract):
        raise StudyError(f"{field}: {name} is no {_kind(field)}: it lacks {', '.join(missing)}")
    if not _derives(target, contract):
        raise StudyError(f"{field}: {name} is no {_kind(field)}, got {_words(target)}; make it a {_origin(contract)}")
    return target


def replaced(raw: Mapping[str, Any], allowed: Allowed) -> dict[str, Any]:
    """A study's fields with every ``module:Name`` loaded, each as an ``Extension``. Raises StudyError as ``load`` does."""
    fields = dict(raw)
    for field in ("strategy", "allocation", "sampler", "task", "protocol"):
        if field in fields:
            fields[field] = _one(field, fields[field], allowed)
    methods = fields.get("methods")
    if isinstance(methods, list | tuple):
        fields["methods"] = [_one("methods", each, allowed) for each in methods]
    elif named(methods):
        fields["methods"] = [_one("methods", methods, allowed)]
    budget = fields.get("budget")
    several = budget if isinstance(budget, list | tuple) else [budget]
    if any(named(key) for each in several if isinstance(each, Mapping) for key in each):
        fields["budget"] = [part for each in several for part in _budgets(each, allowed)]
    return fields


def _budgets(given: Any, allowed: Allowed) -> list[Any]:
    """Those of one's own apart from ours."""
    if not isinstance(given, Mapping):
        return [given]
    own = [Extension(key, load("budget", key, CONTRACTS["budget"], allowed), given[key]) for key in given if named(key)]
    return [{key: value for key, value in given.items() if not named(key)}, *own]


def _one(field: str, value: Any, allowed: Allowed) -> Any:
    if named(value):
        return Extension(value, load(field, value, CONTRACTS[field], allowed))
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
        if named(name):
            return Extension(name, load(field, name, CONTRACTS[field], allowed), settings)
    return value


@contextmanager
def _from_here() -> Iterator[None]:
    """The current folder is importable, as it is for a script in it, and last, so that it hides nothing."""
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _imported(field: str, module: str) -> object:
    try:
        with _from_here():
            return importlib.import_module(module)
    except Exception as error:  # whatever a person's module raises
        raise StudyError(f"{field}: {module} does not import: {type(error).__name__}: {_reason(error)}") from None


def _missing(target: object, contract: Any) -> list[str]:
    """The verbs that a target lacks: those it leaves abstract, and those of the contract that it has not."""
    left = set(getattr(target, "__abstractmethods__", ()))
    abstract: frozenset[str] = getattr(contract, "__abstractmethods__", frozenset())
    return sorted(left | {verb for verb in abstract if not hasattr(target, verb)})


def _derives(target: object, contract: Any) -> bool:
    # A method is described by an object; any other contract is met by a class or by an object of one.
    return isinstance(target, contract) or (contract is not Method and inspect.isclass(target) and issubclass(target, contract))


def _kind(field: str) -> str:
    return field.removesuffix("s")


def _words(target: object) -> str:
    return f"the class {target.__name__}" if inspect.isclass(target) else f"an object of {type(target).__name__}"


def _origin(contract: Any) -> str:
    return " or ".join(f"{each.__module__}.{each.__qualname__}" for each in get_args(contract) or (contract,))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
