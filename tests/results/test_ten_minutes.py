"""The page of the ten-minute studies is made of its rows."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ten_minutes


def row(draw: int, test: float, seconds: float) -> ten_minutes.Row:
    said = (72.0, 66.0, 78.0)
    search = {"linear_probe": 61.0, "lora": 70.1}
    return ten_minutes.Row(draw, "lora", test, 5000, said, search, seconds, 2, {"torch": "2"})


def test_the_page_tells_mean_spread_coverage_and_every_draw() -> None:
    text = ten_minutes.page([row(1, 72.0, 610), row(0, 64.0, 590)])
    assert "Test accuracy 68.0%, sd 5.7, n 2 draws, 5,000 images (bar 70%)" in text
    assert "took 600 s on 2 cores; the prediction covers 1 of 2. torch 2." in text
    assert text.index("| 0 | lora | 64.0 | 72.0 [66.0, 78.0] | 590 | lora 70.1, linear_probe 61.0 |") < text.index("| 1 | lora")


def test_the_page_in_the_repository_is_that_of_its_rows() -> None:
    assert ten_minutes.PAGE.read_text(encoding="utf-8") == ten_minutes.page(ten_minutes.read_rows())
