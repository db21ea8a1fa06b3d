"""Metrics against scikit-learn, and as means over images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from methods.protocols.contract import Answers, accuracy
from methods.protocols.metrics import METRICS, measured

answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=60)


@given(answers)
def test_they_agree_with_scikit_learn(both: list[tuple[int, int]]) -> None:
    label, said = (np.array(column) for column in zip(*both, strict=True))
    present = np.unique(label)
    expected = {
        "accuracy": (label == said).mean(),
        "balanced_accuracy": np.mean([(said[label == k] == k).mean() for k in present]),
        "macro_f1": f1_score(label, said, labels=present, average="macro", zero_division=0),
    }
    if set(said) <= set(label) and len(present) > 1:
        assert expected["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, said))
    for name, metric in METRICS.items():
        each = metric(label, said)
        assert each.shape == label.shape
        assert each.mean() == pytest.approx(expected[name]), name


def test_jackknife_against_a_plain_loop() -> None:
    label, said = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 2])
    whole = f1_score(label, said, average="macro")
    pseudo = []
    for i in range(6):
        keep = np.arange(6) != i
        present = np.unique(label[keep])
        pseudo.append(6 * whole - 5 * f1_score(label[keep], said[keep], labels=present, average="macro", zero_division=0))
    expected = np.array(pseudo) - np.mean(pseudo) + whole
    assert METRICS["macro_f1"](label, said) == pytest.approx(expected)


def test_a_score_by_another_metric_has_its_units_and_interval() -> None:
    label = np.array([0] * 30 + [1] * 10)
    said = np.where(np.arange(40) % 4 == 0, 1 - label, label)
    logits = np.eye(2, dtype=np.float32)[said]
    plain = accuracy("predict", "accuracy", np.arange(40), said == label, 0.0, answers=Answers(label, logits))
    assert measured(plain, "accuracy") is plain
    score = measured(plain, "balanced_accuracy")
    assert score.metric == "balanced accuracy"
    assert score.correct is None
    units = score.units()
    assert units is not None
    assert score.value == pytest.approx(units.mean())
    assert score.low < score.value < score.high
