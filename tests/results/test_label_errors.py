"""The table of label errors: what is drawn, how a score is told, and a page that is made of the rows alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import label_errors

from methods.data.records import ArrayImages, ImageSet


def test_a_draw_flips_a_hundred_labels_and_no_other() -> None:
    label = np.arange(3000) % 10
    data = ImageSet(
        ArrayImages(np.zeros((3000, 8, 8, 1), np.uint8)), label, tuple("0123456789"), names=tuple(map(str, range(3000)))
    )
    part, flipped = label_errors.drawn(data, 0)
    truth = label[[int(name) for name in part.names]]
    assert np.bincount(truth).tolist() == [200] * 10
    assert flipped.sum() == 100
    assert np.array_equal(part.label != truth, flipped)


def test_precision_is_that_of_the_hundred_most_suspect() -> None:
    flipped = np.zeros(2000, dtype=bool)
    flipped[:100] = True
    quality = np.arange(2000) / 2000
    assert label_errors.told(quality, flipped) == (100.0, 100.0)
    quality[50:100] += 1
    precision, average = label_errors.told(quality, flipped)
    assert precision == 50.0
    assert 50 < average < 60


def test_the_page_tells_mean_and_spread() -> None:
    rows = [label_errors.Row(i, 0.7, 150, 80, {"one": (60.0 + i, 50.0), "other": (10.0, 9.0)}, 8.0, "now") for i in range(3)]
    assert "| one | 61.0 ± 1.0 | 50.0 ± 0.0 |" in label_errors.page(rows)


def test_the_page_in_the_repository_is_that_of_its_rows() -> None:
    assert label_errors.PAGE.read_text(encoding="utf-8") == label_errors.page(label_errors.read_rows())
