"""What a knob may be: domains, and the one line on which a method declares a knob.

Standard library only, because every other package builds on this module.

A *domain* is a set of values with a scale. A *knob* is one hyperparameter, declared once as a field of a method's frozen
``Config``::

    temperature: float = knob(0.5, Float(0.05, 1.0, log=True), legal=Float(1e-4, 1e3), doc="softmax temperature", source="...")

From that line come validation, the search range, the Optuna distribution, ``--help``, the README's table, the first trial
and the axes of the report.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Value = bool | int | float | str


class UserError(ValueError):
    """A mistake a person can mend: one line that states the rule, the value given and the remedy."""


class KnobError(UserError):
    """A knob's name or value breaks its declaration."""


@dataclass(frozen=True)
class Float:
    """Real numbers in [low, high]. ``log`` searches log(x); ``log1m`` searches log(1 - x), for momenta and EMA decays."""

    low: float
    high: float
    log: bool = False
    log1m: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise KnobError(f"a Float needs low <= high, got low={self.low}, high={self.high}")
        if self.log and self.log1m:
            raise KnobError("a Float is searched by log or by log1m, not by both")
        if self.log and self.low <= 0:
            raise KnobError(f"a log scale needs low > 0, got low={self.low}")
        if self.log1m and self.high >= 1:
            raise KnobError(f"a log(1-x) scale needs high < 1, got high={self.high}")

    @property
    def scale(self) -> str:
        return "log" if self.log else "log1m" if self.log1m else "linear"

    def contains(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def describe(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Int:
    """Whole numbers low, low + step, ..., high. ``log`` searches log(x); with ``power_of_two`` only 2^k are drawn."""

    low: int
    high: int
    log: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise KnobError(f"an Int needs low <= high, got low={self.low}, high={self.high}")
        if (self.log or self.power_of_two) and self.low < 1:
            raise KnobError(f"a log scale needs low >= 1, got low={self.low}")
        if self.power_of_two and not self.powers():
            raise KnobError(f"there is no power of two from {self.low} to {self.high}")

    @property
    def scale(self) -> str:
        return "log" if self.log or self.power_of_two else "linear"

    def powers(self) -> tuple[int, ...]:
        """The powers of two in the range, smallest first."""
        return tuple(2**k for k in range(self.high.bit_length()) if self.low <= 2**k <= self.high)

    def contains(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def describe(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Choice:
    """One of a few named values."""

    options: tuple[Value, ...]

    def __init__(self, options: Iterable[Value]) -> None:
        object.__setattr__(self, "options", tuple(options))
        if not self.options:
            raise KnobError("a Choice needs at least one option")

    @property
    def scale(self) -> str:
        return "categorical"

    def contains(self, value: object) -> bool:
        return any(value == option and type(value) is type(option) for option in self.options)

    def describe(self) -> str:
        return "one of " + ", ".join(str(option) for option in self.options)


Domain = Float | Int | Choice
SWITCH = Choice((True, False))


@dataclass(frozen=True)
class When:
    """A condition on another knob of the same method: it holds where that knob has one of ``values``."""

    knob: str
    values: tuple[Value, ...]

    def __init__(self, knob: str, *values: Value) -> None:
        object.__setattr__(self, "knob", knob)
        object.__setattr__(self, "values", tuple(values))

    def holds(self, config: Mapping[str, Value]) -> bool:
        return config.get(self.knob) in self.values


@dataclass(frozen=True)
class Variant:
    """The default and search range that a knob has instead where ``when`` holds (a temperature without l2 normalisation)."""

    when: When
    default: Value
    search: Domain


@dataclass(frozen=True)
class Knob:
    """One hyperparameter as its ``Config`` declares it. ``legal`` bounds what a person may set, ``search`` what is tried."""

    name: str
    default: Value
    search: Domain | None
    legal: Domain
    unit: str = ""
    doc: str = ""
    source: str = ""
    when: When | None = None
    variants: tuple[Variant, ...] = ()
    within_images: bool = False

    @property
    def type(self) -> str:
        if isinstance(self.legal, Choice):
            return "bool" if all(isinstance(o, bool) for o in self.legal.options) else "choice"
        return "int" if isinstance(self.legal, Int) else "float"

    def check(self, value: object, where: str) -> Value:
        """The value, an int widened to float where the knob is a float. Raises KnobError naming ``where``, rule and value."""
        if self.type == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not self.legal.contains(value):
            raise KnobError(f"{where} must be {self.legal.describe()}, got {value!r}; its default is {self.default}")
        return value  # type: ignore[return-value]

    def active(self, config: Mapping[str, Value]) -> bool:
        """Whether the knob exists under this configuration."""
        return self.when is None or self.when.holds(config)

    def variant(self, config: Mapping[str, Value]) -> Variant | None:
        return next((v for v in self.variants if v.when.holds(config)), None)


_KEY = "knob"


def knob(
    default: Value,
    search: Domain | None,
    *,
    legal: Domain | None = None,
    unit: str = "",
    doc: str = "",
    source: str = "",
    when: When | None = None,
    variants: tuple[Variant, ...] = (),
    within_images: bool = False,
) -> Any:
    """A ``Config`` field that is a knob.

    Args:
        default: the first trial's value.
        search: what a study tries; None for a knob that is only ever set by hand.
        legal: what a person may set; the search range where absent.
        unit: unit of the value, for people.
        doc: one line for ``--help`` and the README.
        source: paper or document that the default or range is taken from.
        when: the knob exists only where another knob has certain values.
        variants: other defaults and ranges under a condition.
        within_images: what is tried never exceeds the number of training images.
    Raises:
        KnobError: the default or a search range lies outside the legal range.
    """
    bounds = legal if legal is not None else search
    if bounds is None:
        raise KnobError("a knob needs a search range, a legal range or both")
    for value in (default, *(v.default for v in variants)):
        if not bounds.contains(value):
            raise KnobError(f"a knob's default must lie in its legal range, {bounds.describe()}, got {value!r}")
    for domain in (search, *(v.search for v in variants)):
        if domain is not None:
            check_inside(domain, bounds, "a knob's search range")
    record = Knob("", default, search, bounds, unit, doc, source, when, variants, within_images)
    return dataclasses.field(default=default, metadata={_KEY: record})


def check_inside(domain: Domain, legal: Domain, where: str) -> None:
    """Raises KnobError unless every value of ``domain`` is legal."""
    if not isinstance(domain, Choice) and (isinstance(legal, Choice) or (isinstance(legal, Int) and isinstance(domain, Float))):
        raise KnobError(f"{where} must stay within {legal.describe()}, got {domain.describe()}")
    ends = domain.options if isinstance(domain, Choice) else (domain.low, domain.high)
    for value in ends:
        widened = float(value) if isinstance(legal, Float) and type(value) is int else value
        if not legal.contains(widened):
            raise KnobError(f"{where} must stay within {legal.describe()}, got {value!r}")


def knobs(config: type) -> dict[str, Knob]:
    """The knobs that a ``Config`` class declares, in order of declaration; dependants follow what they depend on."""
    found = {
        f.name: dataclasses.replace(f.metadata[_KEY], name=f.name) for f in dataclasses.fields(config) if _KEY in f.metadata
    }
    ordered: dict[str, Knob] = {}
    for name in found:
        _place(name, found, ordered, config.__qualname__)
    return ordered


def _place(name: str, found: Mapping[str, Knob], ordered: dict[str, Knob], owner: str, depth: int = 0) -> None:
    if name in ordered:
        return
    if depth > len(found):
        raise KnobError(f"the conditions of {owner}'s knobs must not run in a circle, but {name} depends on itself")
    for condition in conditions(found[name]):
        if condition.knob not in found:
            raise KnobError(f"{owner}.{name} depends on {condition.knob}, which is not a knob of {owner}")
        _place(condition.knob, found, ordered, owner, depth + 1)
    ordered[name] = found[name]


def conditions(item: Knob) -> Iterator[When]:
    """Every condition on another knob that the declaration of ``item`` states."""
    if item.when is not None:
        yield item.when
    for variant in item.variants:
        yield variant.when


def build(config: type, values: Mapping[str, object], where: str = "") -> Any:
    """A checked ``Config``: unset knobs take their default (or the variant's that applies).

    Raises:
        KnobError: an unknown name (the nearest one is offered) or an illegal value.
    """
    declared = knobs(config)
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in declared:
            raise KnobError(f"{prefix}{name} is not a knob{nearest(name, declared)}")
    chosen: dict[str, Value] = {}
    for name, item in declared.items():
        variant = item.variant(chosen)
        default = variant.default if variant else item.default
        chosen[name] = item.check(values[name], prefix + name) if name in values else default
    return config(**chosen)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, or all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
