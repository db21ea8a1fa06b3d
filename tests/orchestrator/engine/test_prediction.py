"""What is said of the test before it is opened: corrections against plain simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from methods.training.clock import Fidelity
from orchestrator.engine.events import Ended, Event, Scored, Selected, Trained, TrialStarted
from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.prediction import LearningCurve, learning_curve, optimism, predict_test
from orchestrator.engine.records import Purpose, Rung, TrialSpec

TOP = Fidelity("epochs", 3)


def judged(key: str, number: int, bits: np.ndarray, purpose: Purpose = "search", **fields: object) -> list[Event]:
    spec = TrialSpec(key, number, "one", {}, 0, purpose, **fields)  # type: ignore[arg-type]
    value = float(bits.mean())
    rung = Rung(3, value, len(bits), value - 0.1, value + 0.1, "validation", bits, 0.1)
    return [TrialStarted(spec), Trained(key, 3, 1.0, {}), Scored(key, rung, TOP), Ended(key, "finished", "")]


def study(p: float, n: int, seed: int, rivals: int = 1, curve: float | None = None) -> History:
    """Configurations of the same true score, judged by two folds; optionally the winner on half of the labels."""
    random = np.random.default_rng(seed)
    events: list[Event] = []
    for number in range(rivals):
        events += judged(f"{number:04d}", number, random.random(n // 2) < p)
    events.append(Selected(list(range(rivals)), 2, 2))
    for number in range(rivals):
        for fold in range(2):
            events += judged(f"{number:04d}-fold{fold}-0", number, random.random(n // 2) < p, "fold", fold=fold, folds=2)
    history = History(events)
    if curve is not None:
        best = finalists(history)[0].trial.spec.trial
        for event in judged(f"{best:04d}-curve-0", best, random.random(n // 2) < curve, "curve", folds=2, share=0.5):
            history.add(event)
    return history


def test_optimism_is_what_the_best_of_equals_owes_to_chance() -> None:
    random = np.random.default_rng(0)
    owed, told = [], []
    for seed in range(40):
        scores = [(random.random(100) < 0.8).astype(float) for _ in range(12)]
        owed.append(max(s.mean() for s in scores) - 0.8)
        told.append(optimism(scores, seed))
    # The bootstrap sees the same images again and again, so that it errs on the careful side.
    assert np.mean(owed) < np.mean(told) < 2 * np.mean(owed)
    assert optimism([np.ones(9)], 0) == 0
    better = np.ones(200), np.zeros(200)
    assert optimism(better, 0) == 0, "a choice that is clear owes nothing"


def test_a_choice_never_counts_as_bad_luck() -> None:
    """The resampled gain of a clear winner is noise around nought, which no prediction may add to a score."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        scores = [(random.random(60) < p).astype(float) for p in (0.9, 0.3, 0.2)]
        assert optimism(scores, seed) >= 0
        assert optimism(scores, seed, baseline=0) >= 0


def test_a_baseline_that_is_preferred_owes_less_to_chance() -> None:
    random = np.random.default_rng(1)
    owed, told, best = [], [], []
    for seed in range(40):
        scores = [(random.random(100) < 0.8).astype(float) for _ in range(4)]
        gaps = [np.array([*(s - scores[0]), 1, -1]) for s in scores]
        passing = [s for s, gap in zip(scores, gaps, strict=True) if gap.mean() > gap.std() / math.sqrt(102)]
        owed.append(max((s.mean() for s in passing), default=scores[0].mean()) - 0.8)
        told.append(optimism(scores, seed, baseline=0))
        best.append(optimism(scores, seed))
    assert 0 < np.mean(owed) < 1.5 * np.mean(told) < 3.5 * np.mean(owed)
    assert np.mean(told) < np.mean(best)


def test_the_curve_of_the_winner_and_the_prior() -> None:
    known = learning_curve(finalists(study(0.8, 4000, 0, curve=0.7))[0], study(0.8, 4000, 0, curve=0.7), 4000)
    assert known.labels == (1000, 2000)
    # From 30% errors to 20% with twice the labels.
    assert known.exponent == pytest.approx(math.log2(0.3 / 0.2), abs=0.12)
    blind = learning_curve(finalists(study(0.8, 4000, 0))[0], study(0.8, 4000, 0), 4000)
    assert (blind.labels, blind.exponent, blind.exponent_sd) == ((2000,), 0.4, 0.25)
    assert known.exponent_sd < blind.exponent_sd
    score, sd = LearningCurve((100,), (0.8,), 0.5, 0.1).at(400)
    assert score == pytest.approx(0.9)
    assert sd == pytest.approx(0.1 * math.log(4) * 0.1)


@pytest.mark.parametrize(("p", "n"), [(0.6, 100), (0.9, 250)])
def test_the_interval_covers_as_often_as_it_says(p: float, n: int) -> None:
    """Of configurations whose labels bring nothing more (refit: false), as a test of 900 images sees them."""
    random, inside = np.random.default_rng(1), []
    for seed in range(150):
        said = predict_test(study(p, n, seed), n, 900, seed)
        assert said is not None
        test = (random.random(900) < p + 0.03 * math.sqrt(p * (1 - p)) * random.standard_normal()).mean()
        inside.append(said.low <= test <= said.high)
        assert said.value == pytest.approx(sum(said.parts.values()))
    assert 0.84 < np.mean(inside) < 0.97


def test_a_perfect_score_is_no_certainty() -> None:
    said = predict_test(study(1.0, 40, 0), 40, 900, 0)
    assert said is not None
    assert said.low < 0.97
    assert said.high > said.low + 0.02
    assert said.value == pytest.approx(sum(said.parts.values())), "the parts of the sentence add up"
    many = predict_test(study(1.0, 2000, 0), 2000, 900, 0)
    assert many is not None
    assert 0.999 < many.value < 1, "of 2,000 right answers one may say more than of 40"


def test_what_more_labels_bring_is_a_difference_of_one_curve() -> None:
    """Against draws of the exponent."""
    curve = LearningCurve((100,), (0.8,), 0.4, 0.1)
    drawn = np.random.default_rng(0).normal(0.4, 0.1, 20_000)
    gains = 0.2 * (0.5**drawn - 0.25**drawn)
    more, sd = curve.gain(200, 400)
    assert more == pytest.approx(gains.mean(), rel=0.05)
    assert sd == pytest.approx(gains.std(), rel=0.15)


def test_labels_gain_where_the_final_model_sees_them() -> None:
    """A probe on a label-free training is fitted on all labels, whatever seeds judged it; others gain by a refit alone."""
    plain, probed = (predict_test(study(0.8, 100, 0), 100, 900, 0, frozenset(names)) for names in ((), ("one",)))
    assert plain is not None
    assert probed is not None
    assert plain.parts["labels"] == 0
    assert probed.parts["labels"] > 0.01


def test_without_folds_nothing_is_predicted() -> None:
    history = History([*judged("0000", 0, np.ones(9, bool)), Selected([0])])
    assert predict_test(history, 18, 100, 0) is None
    assert predict_test(History([Selected([])]), 18, 100, 0) is None
