"""Temperatures against plain loops and simulations, and what reliability says of models whose truth is known."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.heads import NEVER, Classifier, NeighbourHead, Tempered, load_predictor, save_predictor
from methods.protocols.confidence import DOUBT, Scaling, fit_scaling, reliability
from methods.protocols.contract import Answers

Drawn = tuple[NDArray[np.float64], NDArray[np.int64]]


def calibrated(n: int, random: np.random.Generator, clear: float = 2.0, classes: int = 10) -> Drawn:
    """Logits that are the very log-probabilities, up to a constant: classes are normal around corners, ``clear`` apart."""
    label = random.integers(0, classes, n)
    x = random.normal(size=(n, classes))
    x[np.arange(n), label] += clear
    return clear * x, label


def cost(logits: NDArray[np.float64], label: NDArray[np.int64], temperature: float) -> float:
    """The negative logarithm of the posterior density, up to a constant, answer by answer."""
    total = abs(math.log(temperature)) / DOUBT
    for row, k in zip(logits.tolist(), label.tolist(), strict=True):
        z = [value / temperature for value in row]
        total += max(z) + math.log(sum(math.exp(value - max(z)) for value in z)) - z[k]
    return total


@pytest.mark.parametrize(("n", "true"), [(40, 0.4), (40, 3.0), (200, 1.5)])
def test_the_temperature_is_the_posteriors_mode(n: int, true: float) -> None:
    logits, label = calibrated(n, np.random.default_rng(n))
    found = fit_scaling(true * logits, label)
    best = min(np.exp(np.linspace(-3, 3, 1201)), key=lambda t: cost(true * logits, label, t))
    assert found.temperature == pytest.approx(best, rel=0.01)
    assert found.answers == n


def test_many_answers_tell_the_true_temperature() -> None:
    logits, label = calibrated(4000, np.random.default_rng(0))
    for true in (0.3, 1.0, 4.0):
        assert fit_scaling(true * logits, label).temperature == pytest.approx(true, rel=0.05)


def test_few_answers_leave_a_good_model_alone_and_mend_a_bad_one() -> None:
    """On 900 test images, mean over draws: never worse by more than .01, and better where there is something to mend."""
    random = np.random.default_rng(1)
    worse = {}
    for true in (0.6, 1.0, 3.0):
        gaps, kept = [], 0
        for draw in range(40):
            logits, label = calibrated(40, random)
            scaling = fit_scaling(true * logits, label)
            kept += scaling.temperature == 1
            logits, label = calibrated(900, random)
            said = reliability(Answers(label, (true * logits).astype(np.float32)), scaling, draw)
            gaps.append((said.before - said.perfect_before, said.after - said.perfect_after))
        before, after = np.mean(gaps, axis=0)
        worse[true] = after - before
        if true == 3.0:
            assert after < 0.3 * before
        if true == 1.0:
            assert kept > 10, "most often the answers say nothing against 1"
    assert max(worse.values()) < 0.01
    assert worse[0.6] < 0


def test_no_number_of_right_answers_is_certainty() -> None:
    label = np.arange(40) % 4
    logits = np.log(np.where(np.eye(4)[label] > 0, 0.9, 0.1 / 3))
    found = fit_scaling(logits, label)
    assert 0.2 < found.temperature < 1
    assert found.layer()(torch.from_numpy(logits)).softmax(1).max() < 0.9999


def test_an_image_that_was_asked_twice_counts_once() -> None:
    logits, label = calibrated(60, np.random.default_rng(2))
    once, twice = fit_scaling(2 * logits, label), fit_scaling(np.tile(2 * logits, (2, 1)), np.tile(label, 2), np.full(120, 0.5))
    assert (twice.temperature, twice.answers) == (pytest.approx(once.temperature, rel=1e-4), 60)
    assert fit_scaling(np.tile(2 * logits, (2, 1)), np.tile(label, 2)).temperature > once.temperature


def test_votes_become_probabilities() -> None:
    """Neighbours that agree are right nine times in ten: so is what is said of them; half of the votes stays about half."""
    random = np.random.default_rng(3)
    votes = np.zeros((400, 5))
    label = random.integers(0, 5, 400)
    said = np.where(random.random(400) < 0.9, label, (label + 1) % 5)
    votes[np.arange(400), said] = 1
    with np.errstate(divide="ignore"):
        raw = np.log(votes)
    layer = fit_scaling(raw, label).layer()
    found = layer(torch.from_numpy(raw)).softmax(1)
    assert torch.equal(found.argmax(1), torch.from_numpy(said))
    assert float(found.max(1).values.mean()) == pytest.approx((said == label).mean(), abs=0.01)
    half = layer(torch.log(torch.tensor([[0.5, 0.5, 0, 0, 0]]))).softmax(1)
    assert half[0, 0] == half[0, 1] > 0.4
    # The votes of this package say "never" in finite logits: nothing else follows.
    assert torch.allclose(layer(torch.from_numpy(raw).clamp_min(NEVER)).softmax(1), found)


def test_a_class_that_a_fold_did_not_know_does_not_spoil_the_rest() -> None:
    logits, label = calibrated(200, np.random.default_rng(4))
    without = logits.copy()
    without[:, 9] = NEVER
    assert fit_scaling(without, label).temperature < 3
    known = label != 9
    assert fit_scaling(without[known], label[known]).temperature == pytest.approx(1, abs=0.25)


def test_tempered_is_temperature_scaling_where_nothing_is_ruled_out() -> None:
    z = torch.randn(20, 6, dtype=torch.float64)
    assert torch.allclose(Tempered(2.5, 0.1)(z).softmax(1), (z / 2.5).softmax(1))
    ruled_out = torch.tensor([[2.0, 1.0, NEVER, -math.inf]])
    p = Tempered(1.0, 0.1)(ruled_out).softmax(1)[0]
    assert p[2] == p[3] == pytest.approx(0.1 / 4)
    assert p[0] / p[1] == pytest.approx(math.e, rel=1e-5)
    assert p.sum() == pytest.approx(1)


def test_a_saved_predictor_is_calibrated(tiny_named: Classifier) -> None:
    file = io.BytesIO()
    save_predictor(file, tiny_named, ("a", "b", "c"), Scaling(3.0, 0.01, 50).layer())
    file.seek(0)
    images = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        loaded = load_predictor(file)
        assert torch.allclose(loaded(images).softmax(1), (tiny_named.eval()(images) / 3).softmax(1), atol=1e-6)
    assert loaded.classes == ("a", "b", "c")


@pytest.fixture
def tiny_named() -> Classifier:
    encoder = build_encoder(EncoderSpec("conv4"), (3, 16, 16), (0.5,) * 3, (0.2,) * 3)
    return Classifier(encoder, NeighbourHead(torch.randn(9, encoder.dim), torch.arange(9) % 3, 3, 9, 0.5))


def test_reliability_of_a_perfect_and_of_a_bragging_model() -> None:
    logits, label = calibrated(3000, np.random.default_rng(5))
    right = (logits.argmax(1) == label).mean()
    good = reliability(Answers(label, logits.astype(np.float32)), Scaling(1.0, 0.01, 9), 0)
    assert good.before == pytest.approx(good.after)
    assert good.after == pytest.approx(good.perfect_after, abs=0.01)
    said = reliability(Answers(label, (4 * logits).astype(np.float32)), Scaling(4.0, 0.01, 9), 0)
    assert said.after == pytest.approx(good.after, abs=1e-4)
    assert said.before > 0.1 > 3 * said.perfect_before
    assert said.at(1) == pytest.approx(right)
    assert said.coverage[-1] == 1
    assert said.at(0.5) > said.at(0.8) > said.at(1)


def test_few_images_have_few_points() -> None:
    logits, label = calibrated(3, np.random.default_rng(6))
    said = reliability(Answers(label, logits.astype(np.float32)), Scaling(1.0, 0.01, 9), 0)
    assert said.coverage == pytest.approx((1 / 3, 2 / 3, 1))
