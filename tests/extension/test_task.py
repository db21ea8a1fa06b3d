"""A task of one's own: which half of the classes an image belongs to, judged as a classification."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from methods.contracts import Method
from methods.data.records import ImageSet, IntArray, Source, Split, TrainData
from methods.data.sources import load
from methods.protocols.contract import Protocol
from methods.tasks import Classification, Facts, Task
from orchestrator import Study, run
from orchestrator.testing import check_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Halves(Task):
    """The first half of the classes against the second, from so many labels."""

    name: ClassVar[str] = "halves"
    labels: int = 40

    @property
    def inner(self) -> Classification:
        """What it becomes once the classes are put together."""
        return Classification(labels=self.labels)

    def divide(self, source: Source, test: float | Source | Literal["none"] | None, protocol: Protocol, seed: int) -> Split:
        merged = dataclasses.replace(source, train=halved(source.train), test=source.test and halved(source.test))
        return self.inner.divide(merged, test, protocol, seed)

    def final_data(self, split: Split) -> TrainData:
        return self.inner.final_data(split)

    def truth(self, split: Split, data: TrainData) -> IntArray | None:
        return self.inner.truth(split, data)

    def refits(self, split: Split, method: Method) -> bool:
        return self.inner.refits(split, method)

    def facts(self, split: Split) -> Facts:
        return self.inner.facts(split)


def halved(data: ImageSet) -> ImageSet:
    second = data.label >= len(data.classes) // 2
    return dataclasses.replace(data, label=np.where(data.label < 0, -1, second).astype(np.int64), classes=("first", "second"))


def test_it_keeps_the_contract() -> None:
    check_task(Halves(), load("digits", size=8))


def test_a_study_learns_it(small: dict[str, Any], tmp_path: Path) -> None:
    del small["labels"]
    result = run(Study(**small, task=Halves()), tmp_path / "run")
    assert result.best is not None
    assert result.best.classes == ("first", "second")
    blank = torch.zeros((1, *result.best.load_encoder().shape), dtype=torch.uint8)
    assert result.best.load_predictor()(blank).shape[1] == 2
    assert "Winner: " in (result.folder / "report.html").read_text()
