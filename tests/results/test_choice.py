"""The table of choices: regret without the luck of the test, and a page that is made of the rows alone."""

from __future__ import annotations

import base64
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import choice


def candidate(trial: int, method: str, bits: np.ndarray, half: float = 0.5) -> choice.Candidate:
    return choice.Candidate(trial, method, 0.5, half, base64.b64encode(np.packbits(bits).tobytes()).decode())


def row(winner: int, *candidates: choice.Candidate, tests: int = 1000) -> choice.Row:
    said = {"value": 0.8, "low": 0.7, "high": 0.9, "test": 0.82}
    return choice.Row("digits", 40, 0, tests, winner, candidates, said, {"search": 100.0, "selection": 50.0}, (2, 2, 2), "now")


def answers(right: int, seed: int, tests: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).permutation(tests) < right


def test_regret_is_what_the_best_has_more() -> None:
    good, bad = answers(900, 0), answers(800, 1)
    lost = choice.regret(row(1, candidate(0, "simclr", good), candidate(1, "supervised", bad)), 1)
    assert lost.points == pytest.approx(10.0)
    assert 5 < lost.low < 10
    assert choice.regret(row(0, candidate(0, "simclr", good), candidate(1, "supervised", bad)), 0).points == 0


def test_regret_does_not_count_the_luck_of_the_test() -> None:
    """Among equals whoever looks best on the test is best by luck: the plain difference to it is 3 points here, regret none."""
    plain, swapped = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        equals = [candidate(i, f"m{i}", random.random(1000) < 0.8) for i in range(8)]
        plain.append(100 * (max(c.bits(1000).mean() for c in equals) - equals[0].bits(1000).mean()))
        swapped.append(choice.regret(row(0, *equals), 0).points)
    assert np.mean(plain) > 1.5
    assert abs(np.mean(swapped)) < 0.5


def test_the_page_is_made_of_the_rows_and_shows_the_worst_first() -> None:
    good, bad = answers(900, 0), answers(800, 1)
    pair = candidate(0, "simclr", good, 0.6), candidate(1, "supervised", bad, 0.7)
    text = choice.page([row(0, *pair), row(1, *pair)])
    table = text[text.index("| data |") :].splitlines()[2:]
    assert "| supervised | 10.0 | 10.0 | 10.0 | 0.0 | supervised | 80.0 [70.0, 90.0] | 82.0 |" in table[0]
    assert "| simclr | 0.0 | 0.0 | 10.0 | 0.0 | simclr | 80.0 [70.0, 90.0] | 82.0 |" in table[1]
    assert "| 90% prediction covers the test, where the same winner is chosen today | 2 of 2 |" in text
    assert "| share of selection and refit in the trainings' seconds | 0.33" in text


def test_the_page_in_the_repository_is_that_of_its_rows() -> None:
    assert choice.PAGE.read_text(encoding="utf-8") == choice.page(choice.read_rows())


def test_the_rule_of_today_is_applied_to_what_the_folds_answered() -> None:
    """A lead within one standard error leaves the baseline in place; by score alone it wins."""
    good, bad = answers(900, 0), answers(800, 1)
    ahead = replace(candidate(0, "simclr", bad), judged={"0": "1" * 20, "1": "1" * 14 + "0" * 6})
    own = replace(candidate(1, "supervised", good), judged={"0": "0" + "1" * 19, "1": "1" * 14 + "0" * 6})
    once = replace(candidate(2, "mae", good), judged={"0": "1" * 20})
    study = row(0, ahead, own, once)
    assert choice.chosen(study) == 1
    assert choice.chosen(study, None) == 0
    clear = replace(ahead, judged={"0": "1" * 20, "1": "1" * 20})
    assert choice.chosen(row(1, clear, own, once)) == 0
    assert choice.below_supervised(row(1, clear, own, once)).points == pytest.approx(10)
