"""Domains and knobs: what is accepted, what is refused and with which words."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.domains import (
    SWITCH,
    Choice,
    Domain,
    Float,
    Int,
    KnobError,
    UserError,
    Value,
    Variant,
    When,
    build,
    check_inside,
    conditions,
    knob,
    knobs,
    nearest,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Float(2, 1), "low <= high, got low=2, high=1"),
        (lambda: Float(math.nan, 1), "low <= high"),
        (lambda: Float(0, 1, log=True), "low > 0, got low=0"),
        (lambda: Float(0.5, 1, log1m=True), "high < 1, got high=1"),
        (lambda: Float(0.1, 0.2, log=True, log1m=True), "not by both"),
        (lambda: Int(2, 1), "low <= high, got low=2, high=1"),
        (lambda: Int(0, 4, log=True), "low >= 1, got low=0"),
        (lambda: Int(0, 4, power_of_two=True), "low >= 1, got low=0"),
        (lambda: Int(5, 7, power_of_two=True), "no power of two from 5 to 7"),
        (lambda: Choice(()), "at least one option"),
    ],
)
def test_a_domain_that_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(KnobError, match=words):
        make()


@pytest.mark.parametrize(
    ("domain", "scale"),
    [
        (Float(0, 1), "linear"),
        (Float(0.1, 1, log=True), "log"),
        (Float(0, 0.9, log1m=True), "log1m"),
        (Int(0, 3), "linear"),
        (Int(1, 3, log=True), "log"),
        (Int(1, 4, power_of_two=True), "log"),
        (SWITCH, "categorical"),
    ],
)
def test_scale(domain: Domain, scale: str) -> None:
    assert domain.scale == scale


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Float(0, 1), [0, 0.0, 0.5, 1], [-1e-9, 1.1, math.nan, math.inf, "0.5", True, None]),
        (Int(1, 4), [1, 4], [0, 5, 2.0, True, "2", None]),
        (Choice(("a", 1, 0.5, True)), ["a", 1, 0.5, True], ["b", 1.0, False, None, [1]]),
        (Choice((1, 2)), [1, 2], [True, 1.0]),
        (SWITCH, [True, False], [1, 0, "true"]),
    ],
)
def test_contains(domain: Domain, inside: list[object], outside: list[object]) -> None:
    assert all(domain.contains(value) for value in inside)
    assert not any(domain.contains(value) for value in outside)


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_powers_of_two_against_a_plain_loop(low: int, more: int) -> None:
    expected, power = [], 1
    while power <= low + more:
        if power >= low:
            expected.append(power)
        power *= 2
    if expected:
        assert Int(low, low + more, power_of_two=True).powers() == tuple(expected)
    else:
        with pytest.raises(KnobError):
            Int(low, low + more, power_of_two=True)


@pytest.mark.parametrize(
    ("domain", "legal", "fits"),
    [
        (Float(0.1, 0.5), Float(0, 1), True),
        (Float(0.1, 1.5), Float(0, 1), False),
        (Float(0.1, math.inf), Float(0, 1e9), False),
        (Int(1, 3), Float(0, 5), True),
        (Int(0, 3), Int(1, 5), False),
        (Float(1, 3), Int(1, 5), False),
        (Int(1, 2), Choice((1, 2)), False),
        (Choice((1, 3)), Int(1, 5), True),
        (Choice((1, 2.5)), Int(1, 5), False),
        (Choice((0, 1)), Float(0, 1), True),
        (Choice(("a",)), Choice(("a", "b")), True),
        (Choice(("a", "c")), Choice(("a", "b")), False),
    ],
)
def test_check_inside(domain: Domain, legal: Domain, fits: bool) -> None:
    if fits:
        check_inside(domain, legal, "here")
    else:
        with pytest.raises(KnobError, match=r"^here must stay within .*, got "):
            check_inside(domain, legal, "here")


@pytest.mark.parametrize(
    "declare",
    [
        lambda: knob(2.0, Float(0, 1)),
        lambda: knob(0.5, Float(0, 2), legal=Float(0, 1)),
        lambda: knob(0.5, None),
        lambda: knob(1.0, Float(0, 1), variants=(Variant(When("other", 1), 3.0, Float(0, 1)),)),
        lambda: knob(1.0, Float(0, 1), variants=(Variant(When("other", 1), 1.0, Float(0, 9)),)),
    ],
)
def test_a_declaration_outside_its_legal_range_is_refused(declare: Any) -> None:
    with pytest.raises(KnobError):
        declare()


@dataclass(frozen=True)
class Config:
    """Knobs declared in an order that their conditions forbid."""

    temperature: float = knob(
        0.5,
        Float(0.05, 1.0, log=True),
        legal=Float(1e-3, 1e3),
        variants=(Variant(When("normalise", False), 30.0, Float(10.0, 100.0, log=True)),),
    )
    depth: int = knob(2, Int(1, 4), when=When("head", "mlp", "deep"))
    normalise: bool = knob(True, SWITCH, when=When("head", "mlp", "deep", "linear"))
    head: str = knob("mlp", Choice(("mlp", "linear", "deep")))
    plain: int = 7


def test_dependants_follow_what_they_depend_on_and_plain_fields_are_no_knobs() -> None:
    order = list(knobs(Config))
    assert set(order) == {"temperature", "depth", "normalise", "head"}
    for name, item in knobs(Config).items():
        assert item.name == name
        assert all(order.index(condition.knob) < order.index(name) for condition in conditions(item))


def test_knobs_in_no_need_of_order_keep_theirs() -> None:
    @dataclass(frozen=True)
    class Flat:
        b: int = knob(1, Int(0, 2))
        a: int = knob(1, Int(0, 2))
        c: int = knob(1, Int(0, 2))

    assert list(knobs(Flat)) == ["b", "a", "c"]


def test_conditions_in_a_circle_are_refused() -> None:
    @dataclass(frozen=True)
    class Circle:
        a: int = knob(1, Int(0, 2), when=When("b", 1))
        b: int = knob(1, Int(0, 2), when=When("c", 1))
        c: int = knob(1, Int(0, 2), when=When("a", 1))

    with pytest.raises(KnobError, match="must not run in a circle"):
        knobs(Circle)


def test_a_condition_on_no_knob_is_refused() -> None:
    @dataclass(frozen=True)
    class Lost:
        a: int = knob(1, Int(0, 2), when=When("z", 1))

    with pytest.raises(KnobError, match=r"Lost\.a depends on z, which is not a knob"):
        knobs(Lost)


@pytest.mark.parametrize(
    ("domain", "kind"),
    [(Float(0, 1), "float"), (Int(0, 1), "int"), (SWITCH, "bool"), (Choice(("a", True)), "choice"), (Choice((1, 2)), "choice")],
)
def test_type(domain: Domain, kind: str) -> None:
    default: Value = domain.options[0] if isinstance(domain, Choice) else domain.low

    @dataclass(frozen=True)
    class One:
        a: Any = knob(default, domain)  # noqa: RUF009

    assert knobs(One)["a"].type == kind


def test_when_and_variant() -> None:
    declared = knobs(Config)
    assert declared["depth"].active({"head": "deep"})
    assert not declared["depth"].active({"head": "linear"})
    assert not declared["depth"].active({})
    assert declared["temperature"].active({})
    assert declared["temperature"].variant({"normalise": True}) is None
    assert declared["temperature"].variant({}) is None
    found = declared["temperature"].variant({"normalise": False})
    assert found is not None
    assert found.default == 30.0


def test_build_takes_defaults_and_the_variants_where_they_apply() -> None:
    assert build(Config, {}) == Config()
    assert build(Config, {"normalise": False}).temperature == 30.0
    assert build(Config, {"normalise": False, "temperature": 0.2}).temperature == 0.2
    with pytest.raises(FrozenInstanceError):
        build(Config, {}).depth = 3


def test_build_widens_whole_numbers_where_the_knob_is_a_float() -> None:
    value = build(Config, {"temperature": 1}).temperature
    assert value == 1.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({"temprature": 1.0}, "m", r"^m\.temprature is not a knob; did you mean temperature\?$"),
        ({"zzz": 1.0}, "", r"^zzz is not a knob; known are depth, head, normalise, temperature$"),
        ({"temperature": 0.0}, "m", r"^m\.temperature must be a number from 0\.001 to 1000, got 0\.0; its default is 0\.5$"),
        ({"temperature": math.nan}, "", "^temperature must be a number from .* got nan"),
        ({"temperature": "hot"}, "", "^temperature must be a number from .* got 'hot'"),
        ({"depth": 2.0}, "", r"^depth must be a whole number from 1 to 4, got 2\.0"),
        ({"depth": True}, "", "^depth must be a whole number from 1 to 4, got True"),
        ({"head": "mpl"}, "", "^head must be one of mlp, linear, deep, got 'mpl'"),
        ({"normalise": 1}, "", "^normalise must be one of True, False, got 1"),
        ({"plain": 3}, "", "^plain is not a knob"),
    ],
)
def test_build_refuses_with_field_rule_and_value(values: dict[str, object], where: str, words: str) -> None:
    with pytest.raises(KnobError, match=words) as caught:
        build(Config, values, where)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_nearest_offers_one_name_or_all() -> None:
    assert nearest("simclt", ["simclr", "moco"]) == "; did you mean simclr?"
    assert nearest("qqq", ["simclr", "moco"]) == "; known are moco, simclr"
