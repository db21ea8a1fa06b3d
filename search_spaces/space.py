"""The conditional space of a study: the method is a choice, its knobs exist only under it, and a knob may open others.

The builder is handed the methods' ``Config`` classes; it imports no method. Names in Optuna are ``method``, ``method.knob``
and, where a study compares encoders, ``encoder`` (``encoder@A|B`` where some methods may be tried with these alone). Three
transforms keep Optuna's scales honest and stand in the name: ``m.1-momentum`` (searched as log(1 - x)), ``m.log2(batch_size)``
(powers of two), ``m.temperature@normalise=False`` (a variant's own range).
"""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.domains import (
    Choice,
    Domain,
    Float,
    Int,
    Knob,
    KnobError,
    UserError,
    Value,
    check_inside,
    knobs,
    nearest,
)

METHOD, ENCODER = "method", "encoder"

Override = Domain | Value
"""What a study may put in a knob's place: a range to search, or a value to fix."""


class Asked(Protocol):
    """What a configuration is asked of: an Optuna trial, or what answers like one."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Suggestion:
    """One configuration: a method, its active knobs' values, and the label of its encoder where the study compares encoders."""

    method: str
    values: Mapping[str, Value]
    encoder: str = ""


@dataclass(frozen=True)
class _Axis:
    """A knob under a condition, as Optuna sees it."""

    name: str
    domain: Domain

    def distribution(self) -> BaseDistribution:
        d = self.domain
        if isinstance(d, Choice):
            return CategoricalDistribution(d.options)
        if isinstance(d, Int):
            if d.power_of_two:
                powers = d.powers()
                return IntDistribution(powers[0].bit_length() - 1, powers[-1].bit_length() - 1)
            return IntDistribution(d.low, d.high, log=d.log)
        if d.log1m:
            return FloatDistribution(1 - d.high, 1 - d.low, log=True)
        return FloatDistribution(d.low, d.high, log=d.log)

    def decode(self, raw: Any) -> Value:
        d = self.domain
        if isinstance(d, Int) and d.power_of_two:
            return 2 ** int(raw)
        if isinstance(d, Float) and d.log1m:
            return min(max(1 - float(raw), d.low), d.high)
        return raw

    def encode(self, value: Value) -> Any:
        """The value moved into the domain where it lies outside: the nearest end, or the first option."""
        d = self.domain
        if isinstance(d, Choice):
            return value if d.contains(value) else d.options[0]
        assert isinstance(value, int | float)
        inside = min(max(value, d.low), d.high)
        if isinstance(d, Int):
            if d.power_of_two:
                return min(d.powers(), key=lambda p: abs(p - inside)).bit_length() - 1
            return int(inside)
        return 1 - inside if d.log1m else float(inside)


class Space:
    """All configurations that a study may try.

    Args:
        configs: method name -> its ``Config`` class.
        overrides: ``method.knob`` or ``*.knob`` (any pattern) -> a domain to search instead, or a value to fix. The most
            specific pattern wins: an exact name before a pattern, a later pattern before an earlier one.
        images: training images, which ``within_images`` knobs are not searched beyond; None where the data is not known.
        encoders: method name -> labels of the encoders that it may be tried with, the first for its first trial; empty where
            the study has one encoder.
    Raises:
        KnobError: a name matches no knob, or a value or range leaves the knob's legal range.
    """

    def __init__(
        self,
        configs: Mapping[str, type],
        overrides: Mapping[str, Override] | None = None,
        images: int | None = None,
        encoders: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not configs:
            raise UserError("a space needs at least one method, got none")
        self.configs, self.images = dict(configs), images
        self.encoders = {name: tuple(labels) for name, labels in (encoders or {}).items()}
        self.knobs: dict[str, dict[str, Knob]] = {name: knobs(config) for name, config in configs.items()}
        self._overrides = self._resolve(overrides or {})

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.configs)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all encoders that are compared."""
        return tuple(dict.fromkeys(label for name in self.configs for label in self.encoders.get(name, ())))

    def methods_with(self, encoder: str | None) -> tuple[str, ...]:
        """The methods that may be tried with an encoder, by its label; all where that is None."""
        return tuple(name for name in self.configs if encoder is None or encoder in self.encoders.get(name, ()))

    @property
    def first_trials(self) -> int:
        """Trials after which every method and every encoder has been tried once: each method with its first, then the rest."""
        first = {labels[0] for labels in self.encoders.values()}
        return len(self.methods) + sum(label not in first for label in self.labels)

    def _resolve(self, overrides: Mapping[str, Override]) -> dict[str, Override]:
        known = [f"{m}.{k}" for m, ks in self.knobs.items() for k in ks]
        resolved: dict[str, Override] = {}
        for pattern in sorted(overrides, key=lambda p: p in known):
            matched = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
            if not matched:
                method = pattern.split(".", 1)[0]
                pool = [n for n in known if n.startswith(method + ".")] or known
                raise KnobError(f"search.{pattern} matches no knob of the study's methods{nearest(pattern, pool)}")
            for name in matched:
                method, knob_name = name.split(".", 1)
                resolved[name] = _checked(overrides[pattern], self.knobs[method][knob_name], f"search.{pattern}")
        return resolved

    def override(self, method: str, knob: str) -> Override | None:
        return self._overrides.get(f"{method}.{knob}")

    def _axis(self, method: str, item: Knob, chosen: Mapping[str, Value]) -> _Axis | Value:
        """The knob's axis under the values chosen so far, or the value that it is fixed to."""
        override = self.override(method, item.name)
        variant = item.variant(chosen)
        name = f"{method}.{item.name}"
        if override is not None and not isinstance(override, Float | Int | Choice):
            return override
        domain = override if override is not None else variant.search if variant else item.search
        if domain is None:
            return variant.default if variant else item.default
        if override is None and variant is not None:
            name += f"@{variant.when.knob}={'|'.join(map(str, variant.when.values))}"
        if isinstance(domain, Float) and domain.log1m:
            name = name.replace(f".{item.name}", f".1-{item.name}")
        if item.within_images and self.images is not None and isinstance(domain, Int):
            domain = _within(domain, self.images)
        if isinstance(domain, Int) and domain.power_of_two:
            name = name.replace(f".{item.name}", f".log2({item.name})")
        return _Axis(name, domain)

    def only(self, method: str) -> Space:
        """The space of one of the methods alone."""
        made = copy.copy(self)
        made.configs, made.knobs = {method: self.configs[method]}, {method: self.knobs[method]}
        made.encoders = {method: self.encoders[method]} if method in self.encoders else {}
        return made

    def axes(self, method: str) -> tuple[str, ...]:
        """The names of all parameters that a configuration of the method may have in Optuna, in order."""
        which = self._encoder_axis(method)
        found: dict[str, None] = {which.name: None} if isinstance(which, _Axis) else {}
        for item in self.knobs[method].values():
            cases: list[dict[str, Value]] = [{}, *({v.when.knob: v.when.values[0]} for v in item.variants)]
            for chosen in cases:
                axis = self._axis(method, item, chosen)
                if isinstance(axis, _Axis):
                    found[axis.name] = None
        return tuple(found)

    def _encoder_axis(self, method: str) -> _Axis | str:
        """The axis of the encoder, which all methods with the same choice share, or the only label."""
        labels = self.encoders.get(method, ("",))
        if len(labels) == 1:
            return labels[0]
        searched = {label for others in self.encoders.values() if len(others) > 1 for label in others}
        name = ENCODER if set(labels) == searched else f"{ENCODER}@{'|'.join(labels)}"
        return _Axis(name, Choice(labels))

    def suggest(self, trial: Asked) -> Suggestion:
        """Asks Optuna for one configuration, define-by-run."""
        method = str(trial.suggest_categorical(METHOD, self.methods)) if len(self.methods) > 1 else self.methods[0]
        which = self._encoder_axis(method)
        encoder = str(_ask(trial, which)) if isinstance(which, _Axis) else which
        chosen: dict[str, Value] = {}
        for name, item in self.knobs[method].items():
            if not item.active(chosen):
                continue
            axis = self._axis(method, item, chosen)
            chosen[name] = axis.decode(_ask(trial, axis)) if isinstance(axis, _Axis) else axis
        return Suggestion(method, chosen, encoder)

    def defaults(self, method: str, encoder: str | None = None) -> Suggestion:
        """The method's first trial: every knob's default, moved into the study's range where it lies outside.

        Args:
            encoder: the label of another encoder than the method's first.
        """
        chosen: dict[str, Value] = {}
        for name, item in self.knobs[method].items():
            if not item.active(chosen):
                continue
            axis = self._axis(method, item, chosen)
            variant = item.variant(chosen)
            default = variant.default if variant else item.default
            chosen[name] = axis.decode(axis.encode(default)) if isinstance(axis, _Axis) else axis
        return Suggestion(method, chosen, self.encoders.get(method, ("",))[0] if encoder is None else encoder)

    def parameters(self, suggestion: Suggestion) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """The suggestion as Optuna's parameters and distributions: to enqueue it, or to add it as an ended trial.

        Values outside the study's range keep the parameter out: the trial then informs the search by its other knobs.
        """
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        if len(self.methods) > 1:
            params[METHOD], distributions[METHOD] = suggestion.method, CategoricalDistribution(self.methods)
        which = self._encoder_axis(suggestion.method)
        if isinstance(which, _Axis) and which.domain.contains(suggestion.encoder):
            params[which.name], distributions[which.name] = suggestion.encoder, which.distribution()
        chosen: dict[str, Value] = {}
        for name, item in self.knobs[suggestion.method].items():
            if name not in suggestion.values:
                continue
            value = suggestion.values[name]
            axis = self._axis(suggestion.method, item, chosen)
            chosen[name] = value
            if isinstance(axis, _Axis) and axis.domain.contains(value):
                params[axis.name], distributions[axis.name] = axis.encode(value), axis.distribution()
        return params, distributions


def _within(domain: Int, most: int) -> Int:
    """The range up to ``most``; where it lies beyond, the nearest value below."""
    high = min(domain.high, most)
    lowest = 2 ** (high.bit_length() - 1) if domain.power_of_two else high
    return replace(domain, low=min(domain.low, lowest), high=high)


def _checked(override: Override, item: Knob, where: str) -> Override:
    if isinstance(override, Float | Int | Choice):
        check_inside(override, item.legal, where)
        return override
    return item.check(override, where)


def parse_override(raw: object, item: Knob | None, where: str) -> Override:
    """A study file's entry as a domain or a value: ``0.5``, ``{low: , high: , log: }``, ``{choices: [...]}`` or a list.

    ``item`` gives the scale where the entry names none, so narrowing a range keeps searching it as its method declared.
    """
    if isinstance(raw, Float | Int | Choice):
        return raw
    if isinstance(raw, list | tuple):
        return _parse_choices(raw, item, where)
    if not isinstance(raw, Mapping):
        if not isinstance(raw, bool | int | float | str):
            raise KnobError(f"{where} must be a value, a list of choices or a range with low and high, got {raw!r}")
        return _number(raw, item)
    return _parse_range(dict(raw), item, where)


def _number(raw: Any, item: Knob | None) -> Any:
    """A number that YAML takes for text, such as 1e-3, where the knob is a float; anything else as it is."""
    if isinstance(raw, str) and (item is None or item.type == "float") and _EXPONENT.fullmatch(raw):
        return float(raw)
    return raw


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _parse_choices(raw: Sequence[Any], item: Knob | None, where: str) -> Choice:
    if not raw:
        raise KnobError(f"{where} needs at least one choice, got an empty list")
    return Choice(_number(value, item) for value in raw)


def _parse_range(raw: dict[str, Any], item: Knob | None, where: str) -> Domain:
    if "choices" in raw:
        extra = set(raw) - {"choices"}
        if extra or not isinstance(raw["choices"], Sequence) or isinstance(raw["choices"], str):
            raise KnobError(f"{where} with choices must be {{choices: [a, b, ...]}}, got {raw!r}")
        return _parse_choices(raw["choices"], item, where)
    allowed = ("low", "high", "log", "log1m", "power_of_two")
    for key in raw:
        if key not in allowed:
            raise KnobError(f"{where}.{key} is not a part of a range{nearest(key, allowed)}")
    missing = [key for key in ("low", "high") if key not in raw]
    if missing:
        raise KnobError(f"{where} needs low and high, but {missing[0]} is missing in {raw!r}")
    for key in ("log", "log1m", "power_of_two"):
        if not isinstance(raw.get(key, False), bool):
            raise KnobError(f"{where}.{key} must be true or false, got {raw[key]!r}")
    raw = {key: _number(value, None) for key, value in raw.items()}
    for key in ("low", "high"):
        if isinstance(raw[key], bool) or not isinstance(raw[key], int | float):
            raise KnobError(f"{where}.{key} must be a number, got {raw[key]!r}")
    declared = item.search or item.legal if item else None
    whole = isinstance(declared, Int) or "power_of_two" in raw
    if declared is None:
        whole = all(isinstance(raw[k], int) for k in ("low", "high"))
    if whole:
        for key in ("low", "high"):
            if raw[key] != raw[key] // 1:
                raise KnobError(f"{where}.{key} must be a whole number, got {raw[key]!r}")
    switches = {key: raw[key] for key in ("log", "log1m", "power_of_two") if key in raw}
    try:
        if whole:
            if not switches and isinstance(declared, Int):
                switches = {"log": declared.log, "power_of_two": declared.power_of_two}
            return Int(int(raw["low"]), int(raw["high"]), **switches)
        if not switches and isinstance(declared, Float):
            switches = {"log": declared.log, "log1m": declared.log1m}
        return Float(float(raw["low"]), float(raw["high"]), **switches)
    except TypeError as error:
        raise KnobError(f"{where} has a scale that its knob cannot have ({error})") from error
    except KnobError as error:
        raise KnobError(f"{where}: {error}") from error


def _ask(trial: Asked, axis: _Axis) -> Any:
    d = axis.distribution()
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(axis.name, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(axis.name, d.low, d.high, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(axis.name, d.low, d.high, log=d.log)
