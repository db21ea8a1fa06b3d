"""The conditional space, against Optuna itself, and what a study file may put in a knob's place."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, TrialState, create_trial

from search_spaces.domains import SWITCH, Choice, Domain, Float, Int, Knob, KnobError, UserError, Variant, When, knob, knobs
from search_spaces.space import METHOD, Override, Space, Suggestion, parse_override

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Contrast:
    """A knob with a variant, one that opens another, and two transformed scales."""

    normalise: bool = knob(True, SWITCH)
    temperature: float = knob(
        0.5,
        Float(0.05, 1.0, log=True),
        legal=Float(1e-3, 1e3),
        variants=(Variant(When("normalise", False), 30.0, Float(10.0, 100.0, log=True)),),
    )
    momentum: float = knob(0.99, Float(0.9, 0.9999, log1m=True), legal=Float(0.0, 0.99999))
    batch_size: int = knob(256, Int(64, 512, power_of_two=True), legal=Int(2, 65536))
    loss: str = knob("plain", Choice(("plain", "focal")))
    gamma: float = knob(2.0, Float(0.0, 5.0), when=When("loss", "focal"))
    width: int = knob(128, None, legal=Int(1, 8192))


@dataclass(frozen=True)
class Mask:
    mask_ratio: float = knob(0.75, Float(0.25, 0.9), legal=Float(0.0, 0.99))
    batch_size: int = knob(128, Int(32, 256, power_of_two=True), legal=Int(2, 65536))


BOTH = {"contrast": Contrast, "mask": Mask}


def draws(space: Space, n: int, seed: int = 0) -> list[tuple[Suggestion, optuna.trial.FrozenTrial]]:
    study = optuna.create_study(sampler=RandomSampler(seed))
    found = []
    for _ in range(n):
        trial = study.ask()
        suggestion = space.suggest(trial)
        found.append((suggestion, study.tell(trial, state=TrialState.FAIL)))
    return found


def test_a_space_needs_a_method() -> None:
    with pytest.raises(UserError, match="at least one method"):
        Space({})


def test_a_methods_knobs_exist_only_under_it() -> None:
    seen = set()
    for suggestion, trial in draws(Space(BOTH), 60):
        seen.add(suggestion.method)
        assert trial.params.pop(METHOD) == suggestion.method
        assert trial.params
        assert all(name.startswith(suggestion.method + ".") for name in trial.params)
        assert set(suggestion.values) <= set(knobs(BOTH[suggestion.method]))
    assert seen == {"contrast", "mask"}


def test_one_method_is_no_choice() -> None:
    for suggestion, trial in draws(Space({"mask": Mask}), 3):
        assert suggestion.method == "mask"
        assert METHOD not in trial.params


def test_conditions_and_variants_open_knobs_and_rename_axes() -> None:
    focal = plain = sharp = soft = 0
    for suggestion, trial in draws(Space({"contrast": Contrast}), 80):
        values = suggestion.values
        assert ("gamma" in values) == ("contrast.gamma" in trial.params) == (values["loss"] == "focal")
        focal, plain = focal + (values["loss"] == "focal"), plain + (values["loss"] == "plain")
        low, high, name = (
            (0.05, 1.0, "contrast.temperature")
            if values["normalise"]
            else (10.0, 100.0, "contrast.temperature@normalise=False")
        )
        assert low <= float(values["temperature"]) <= high
        assert [n for n in trial.params if "temperature" in n] == [name]
        sharp, soft = sharp + bool(values["normalise"]), soft + (not values["normalise"])
        assert values["width"] == 128
        assert "contrast.width" not in trial.params
    assert min(focal, plain, sharp, soft) > 0


def test_scales_reach_optuna() -> None:
    ((_, trial),) = draws(Space({"contrast": Contrast}), 1)
    momentum = trial.distributions["contrast.1-momentum"]
    assert isinstance(momentum, optuna.distributions.FloatDistribution)
    assert momentum.log
    assert (momentum.low, momentum.high) == (pytest.approx(1e-4), pytest.approx(0.1))
    batch = trial.distributions["contrast.log2(batch_size)"]
    assert isinstance(batch, optuna.distributions.IntDistribution)
    assert (batch.low, batch.high, batch.log) == (6, 9, False)
    temperature = next(d for n, d in trial.distributions.items() if "temperature" in n)
    assert isinstance(temperature, optuna.distributions.FloatDistribution)
    assert temperature.log


def test_log1m_spreads_momenta_evenly_over_decades() -> None:
    """By hand: between .9 and .9999 a third of the draws falls into each decade of 1 - m; sd of the share is 0.03 at 250."""
    momenta = [s.values["momentum"] for s, _ in draws(Space({"contrast": Contrast}), 250)]
    for low, high in ((0.9, 0.99), (0.99, 0.999), (0.999, 0.9999)):
        assert abs(sum(low <= m < high for m in momenta) / len(momenta) - 1 / 3) < 0.15  # type: ignore[operator]


numbers = st.floats(0.0, 0.999, allow_nan=False)


@settings(deadline=None)
@given(a=numbers, b=numbers, x=st.floats(0, 1))
def test_log1m_round_trip(a: float, b: float, x: float) -> None:
    low, high = sorted((a, b))
    space = Space({"contrast": Contrast}, {"contrast.momentum": Float(low, high, log1m=True)})
    value = min(max(low + x * (high - low), low), high)
    default = space.defaults("contrast").values
    parameters, distributions = space.parameters(Suggestion("contrast", {**default, "momentum": value}))
    raw, distribution = parameters["contrast.1-momentum"], distributions["contrast.1-momentum"]
    assert distribution._contains(distribution.to_internal_repr(raw))
    again = space.suggest(FixedTrial(parameters)).values["momentum"]  # type: ignore[arg-type]
    assert low <= again <= high  # type: ignore[operator]
    assert again == pytest.approx(value, abs=1e-15)


@settings(deadline=None)
@given(exponents=st.tuples(st.integers(1, 14), st.integers(1, 14)), data=st.data())
def test_power_of_two_round_trip(exponents: tuple[int, int], data: st.DataObject) -> None:
    low, high = sorted(exponents)
    domain = Int(2**low, 2**high, power_of_two=True)
    space = Space({"mask": Mask}, {"mask.batch_size": domain})
    value = data.draw(st.sampled_from(domain.powers()))
    parameters, _ = space.parameters(Suggestion("mask", {"mask_ratio": 0.5, "batch_size": value}))
    assert parameters["mask.log2(batch_size)"] == int(math.log2(value))
    again = space.suggest(FixedTrial(parameters)).values["batch_size"]  # type: ignore[arg-type]
    assert again == value
    assert isinstance(again, int)


def test_powers_of_two_are_drawn_alone() -> None:
    sizes = {s.values["batch_size"] for s, _ in draws(Space({"mask": Mask}), 60)}
    assert sizes == {32, 64, 128, 256}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_parameters_are_what_optuna_would_have_drawn(seed: int) -> None:
    space = Space(BOTH)
    for suggestion, trial in draws(space, 3, seed):
        parameters, distributions = space.parameters(suggestion)
        assert distributions == trial.distributions
        assert parameters == pytest.approx(trial.params)
        stored = create_trial(value=0.5, params=parameters, distributions=distributions)
        optuna.create_study().add_trial(stored)
        again = space.suggest(FixedTrial(stored.params))  # type: ignore[arg-type]
        assert again.method == suggestion.method
        assert again.values == pytest.approx(suggestion.values)


def test_values_outside_the_range_stay_out_of_the_parameters() -> None:
    space = Space({"mask": Mask}, {"mask.mask_ratio": Float(0.5, 0.6)})
    parameters, distributions = space.parameters(Suggestion("mask", {"mask_ratio": 0.9, "batch_size": 64}))
    assert parameters == {"mask.log2(batch_size)": 6}
    assert set(distributions) == set(parameters)


def test_defaults_are_the_declared_ones() -> None:
    values = Space(BOTH).defaults("contrast").values
    expected = {"normalise": True, "temperature": 0.5, "batch_size": 256, "loss": "plain", "width": 128}
    assert {k: v for k, v in values.items() if k != "momentum"} == expected
    assert values["momentum"] == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("override", "default"),
    [
        ({"contrast.temperature": Float(0.6, 0.9)}, 0.6),
        ({"contrast.temperature": Float(0.1, 0.2)}, 0.2),
        ({"contrast.temperature": Choice((0.1, 0.2))}, 0.1),
        ({"contrast.temperature": Choice((0.1, 0.5))}, 0.5),
        ({"contrast.temperature": 0.07}, 0.07),
        ({"contrast.normalise": False}, 30.0),
        ({"contrast.normalise": False, "contrast.temperature": Float(0.1, 0.2)}, 0.2),
    ],
)
def test_defaults_move_into_what_the_study_allows(override: dict[str, Override], default: float) -> None:
    assert Space(BOTH, override).defaults("contrast").values["temperature"] == default


def test_defaults_move_to_the_nearest_power_of_two() -> None:
    space = Space(BOTH, {"*.batch_size": Int(8, 40, power_of_two=True)})
    assert space.defaults("contrast").values["batch_size"] == 32


@dataclass(frozen=True)
class Queued:
    queue: int = knob(1024, Int(256, 65536, power_of_two=True), legal=Int(1, 1048576), within_images=True)
    words: int = knob(500, Int(100, 2000), legal=Int(1, 10000), within_images=True)


@pytest.mark.parametrize(
    ("images", "queues", "words"),
    [
        (None, (256, 65536), (100, 2000)),
        (5000, (256, 4096), (100, 2000)),
        (200, (128, 128), (100, 200)),
        (50, (32, 32), (50, 50)),
    ],
)
def test_what_is_tried_stays_within_the_training_images(
    images: int | None, queues: tuple[int, int], words: tuple[int, int]
) -> None:
    space = Space({"queued": Queued}, images=images)
    default = space.defaults("queued").values
    assert default == {"queue": min(1024, queues[1]), "words": min(500, words[1])}
    found = [s.values for s, _ in draws(space, 60)]
    for name, (low, high) in (("queue", queues), ("words", words)):
        drawn = [int(v[name]) for v in found]
        assert low <= min(drawn) <= max(drawn) <= high
        assert len(set(drawn)) > 1 or low == high


def test_exact_names_win_over_patterns_and_later_patterns_over_earlier() -> None:
    exact_first = Space(BOTH, {"contrast.batch_size": 16, "*.batch_size": 32})
    assert exact_first.override("contrast", "batch_size") == 16
    assert exact_first.override("mask", "batch_size") == 32
    patterns = Space(BOTH, {"*.batch_size": 32, "m*.batch_size": 64})
    assert patterns.override("contrast", "batch_size") == 32
    assert patterns.override("mask", "batch_size") == 64
    assert Space(BOTH, {"m*.batch_size": 64, "*.batch_size": 32}).override("mask", "batch_size") == 32


def test_a_fixed_knob_is_not_searched_and_an_int_becomes_a_float() -> None:
    for suggestion, trial in draws(Space({"mask": Mask}, {"mask.mask_ratio": 0, "*.batch_size": 2}), 3):
        assert suggestion.values == {"mask_ratio": 0.0, "batch_size": 2}
        assert isinstance(suggestion.values["mask_ratio"], float)
        assert trial.params == {}


def test_widening_beyond_the_search_range_stays_within_the_legal_one() -> None:
    found = [s.values["mask_ratio"] for s, _ in draws(Space({"mask": Mask}, {"mask.mask_ratio": Float(0.91, 0.99)}), 10)]
    assert all(0.91 <= v <= 0.99 for v in found)  # type: ignore[operator]


def test_a_knob_without_search_range_can_be_searched_by_a_study() -> None:
    found = {s.values["width"] for s, _ in draws(Space({"contrast": Contrast}, {"contrast.width": Choice((32, 64, 9))}), 40)}
    assert found == {32, 64, 9}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"mask.mask_ratio": 1.0}, r"^search\.mask\.mask_ratio must be a number from 0 to 0\.99, got 1\.0"),
        ({"mask.mask_ratio": Float(0.5, 1.0)}, r"^search\.mask\.mask_ratio must stay within .* got 1\.0"),
        ({"*.batch_size": 1}, r"^search\.\*\.batch_size must be a whole number from 2"),
        ({"*.batch_size": 64.0}, r"^search\.\*\.batch_size must be a whole number .* got 64\.0"),
        ({"*.batch_size": Float(2.0, 8.0)}, r"^search\.\*\.batch_size must stay within a whole number"),
        ({"contrast.loss": "hinge"}, r"^search\.contrast\.loss must be one of plain, focal, got 'hinge'"),
        ({"contrast.loss": Choice(("plain", "hinge"))}, r"^search\.contrast\.loss must stay within .* got 'hinge'"),
        ({"contrast.normalise": 1}, r"^search\.contrast\.normalise must be one of True, False, got 1"),
        ({"mask.mask_rato": 0.5}, r"^search\.mask\.mask_rato matches no knob .*did you mean mask\.mask_ratio\?"),
        ({"*.mask_size": 2}, r"^search\.\*\.mask_size matches no knob"),
        ({"mask": 2}, r"^search\.mask matches no knob"),
    ],
)
def test_overrides_out_of_legal_or_of_no_knob_are_refused(overrides: dict[str, Override], words: str) -> None:
    with pytest.raises(KnobError, match=words):
        Space(BOTH, overrides)


TEMPERATURE = knobs(Contrast)["temperature"]
MOMENTUM = knobs(Contrast)["momentum"]
BATCH = knobs(Contrast)["batch_size"]
WIDTH = knobs(Contrast)["width"]
LOSS = knobs(Contrast)["loss"]


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        ("0.5", TEMPERATURE, 0.5),
        ("1e-3", TEMPERATURE, 1e-3),
        ("1e-3", None, 1e-3),
        ("2E+1", TEMPERATURE, 20.0),
        ("1e1", LOSS, "1e1"),
        ("true", None, True),
        ("focal", LOSS, "focal"),
        ("[0.1, 1e-1]", TEMPERATURE, Choice((0.1, 0.1))),
        ("{choices: [plain, focal]}", LOSS, Choice(("plain", "focal"))),
        ("{low: 0.05, high: 0.5, log: true}", TEMPERATURE, Float(0.05, 0.5, log=True)),
        ("{low: 0.05, high: 0.5}", TEMPERATURE, Float(0.05, 0.5, log=True)),
        ("{low: 1e-2, high: 5e-1}", TEMPERATURE, Float(0.01, 0.5, log=True)),
        ("{low: 0.05, high: 0.5, log: false}", TEMPERATURE, Float(0.05, 0.5)),
        ("{low: 1, high: 2}", TEMPERATURE, Float(1.0, 2.0, log=True)),
        ("{low: 0.9, high: 0.99}", MOMENTUM, Float(0.9, 0.99, log1m=True)),
        ("{low: 0.5, high: 0.99, log1m: false, log: true}", MOMENTUM, Float(0.5, 0.99, log=True)),
        ("{low: 32, high: 64}", BATCH, Int(32, 64, power_of_two=True)),
        ("{low: 32, high: 64, log: true}", BATCH, Int(32, 64, log=True)),
        ("{low: 32.0, high: 64.0, power_of_two: false}", BATCH, Int(32, 64)),
        ("{low: 1, high: 3, power_of_two: false}", TEMPERATURE, Int(1, 3)),
        ("{low: 8, high: 64}", WIDTH, Int(8, 64)),
        ("{low: 1, high: 3}", None, Int(1, 3)),
        ("{low: 1, high: 3.5}", None, Float(1.0, 3.5)),
    ],
)
def test_every_form_of_a_study_file(text: str, item: Knob | None, expected: Override) -> None:
    found = parse_override(yaml.safe_load(text), item, "search.x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("domain", [Float(0.1, 0.2), Int(1, 2), Choice((1, 2))])
def test_domains_pass_as_they_are(domain: Domain) -> None:
    assert parse_override(domain, TEMPERATURE, "search.x") is domain


@pytest.mark.parametrize(
    ("raw", "item", "words"),
    [
        (None, TEMPERATURE, "must be a value, a list of choices or a range with low and high, got None"),
        (datetime.date(2020, 1, 1), TEMPERATURE, "must be a value"),
        ([], TEMPERATURE, "needs at least one choice"),
        ({}, TEMPERATURE, "needs low and high, but low is missing"),
        ({"choices": []}, TEMPERATURE, "needs at least one choice"),
        ({"choices": "abc"}, LOSS, "with choices must be"),
        ({"choices": 3}, LOSS, "with choices must be"),
        ({"choices": ["a"], "low": 1}, LOSS, "with choices must be"),
        ({"low": 1.0}, TEMPERATURE, "but high is missing"),
        ({"lo": 1.0, "high": 2.0}, TEMPERATURE, r"search\.x\.lo is not a part of a range; did you mean low\?"),
        ({"low": "cold", "high": 2.0}, TEMPERATURE, r"search\.x\.low must be a number, got 'cold'"),
        ({"low": True, "high": 2.0}, TEMPERATURE, r"search\.x\.low must be a number, got True"),
        ({"low": None, "high": 2.0}, TEMPERATURE, r"search\.x\.low must be a number, got None"),
        ({"low": 2.0, "high": 1.0}, TEMPERATURE, "needs low <= high"),
        ({"low": 0, "high": 1.0}, TEMPERATURE, "a log scale needs low > 0"),
        ({"low": 0.9, "high": 1}, MOMENTUM, r"a log\(1-x\) scale needs high < 1"),
        ({"low": 0.1, "high": 1.0, "log": "false"}, TEMPERATURE, r"search\.x\.log must be true or false, got 'false'"),
        ({"low": 0.1, "high": 0.5, "log": True, "log1m": True}, TEMPERATURE, "not by both"),
        ({"low": 64, "high": 128, "log1m": True}, BATCH, "has a scale that its knob cannot have"),
        ({"low": 64.5, "high": 128}, BATCH, r"search\.x\.low must be a whole number, got 64\.5"),
        ({"low": 64, "high": math.inf}, BATCH, r"search\.x\.high must be a whole number, got inf"),
        ({"low": 65, "high": 100}, BATCH, "no power of two from 65 to 100"),
    ],
)
def test_every_bad_form_is_refused_by_name(raw: Any, item: Knob, words: str) -> None:
    with pytest.raises(KnobError, match=words) as caught:
        parse_override(raw, item, "search.x")
    assert "search.x" in str(caught.value)
    assert "\n" not in str(caught.value)


ENCODERS = {"contrast": ("a", "b", "c"), "mask": ("v",)}


def test_an_encoder_is_drawn_before_the_knobs_and_only_where_there_is_a_choice() -> None:
    seen = set()
    for suggestion, trial in draws(Space(BOTH, encoders=ENCODERS), 60):
        assert suggestion.encoder in ENCODERS[suggestion.method]
        assert ("encoder" in trial.params) == (suggestion.method == "contrast")
        assert trial.params.get("encoder", "v") == suggestion.encoder
        if suggestion.method == "contrast":
            assert list(trial.params)[:2] == [METHOD, "encoder"]
        seen.add(suggestion.encoder)
    assert seen == {"a", "b", "c", "v"}


def test_without_a_comparison_the_same_is_drawn_as_ever() -> None:
    plain = [suggestion for suggestion, _ in draws(Space(BOTH), 30)]
    assert [suggestion for suggestion, _ in draws(Space(BOTH, encoders={}), 30)] == plain
    assert {suggestion.encoder for suggestion in plain} == {""}


def test_methods_with_fewer_encoders_draw_from_a_choice_of_their_own() -> None:
    space = Space({**BOTH, "third": Mask}, encoders={"contrast": ("a", "b", "c"), "mask": ("a", "b"), "third": ("a", "b")})
    names = {name for _, trial in draws(space, 60) for name in trial.params if name.startswith("encoder")}
    assert names == {"encoder", "encoder@a|b"}
    assert space.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ({}, 2),
        ({"contrast": ("a", "b", "c"), "mask": ("v",)}, 4),
        ({"contrast": ("a", "b"), "mask": ("b", "a")}, 2),
        ({"contrast": ("a", "b"), "mask": ("a", "b")}, 3),
    ],
)
def test_after_how_many_trials_all_has_been_tried_once(encoders: dict[str, tuple[str, ...]], expected: int) -> None:
    assert Space(BOTH, encoders=encoders).first_trials == expected


def test_a_configuration_with_an_encoder_is_enqueued_as_it_is() -> None:
    space = Space(BOTH, encoders=ENCODERS)
    study = optuna.create_study(sampler=RandomSampler(0))
    for suggestion in (space.defaults("contrast"), space.defaults("contrast", "c"), space.defaults("mask")):
        study.enqueue_trial(space.parameters(suggestion)[0])
        assert space.suggest(study.ask()) == suggestion
    assert space.defaults("contrast").encoder == "a"
