"""A protocol of one's own: the nearest class mean on frozen embeddings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from methods.data.records import LabelledSubset
from methods.protocols.contract import Protocol, Score, Trained, accuracy, embed
from orchestrator import Study, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class NearestMean(Protocol):
    """Accuracy of the nearest class mean."""

    name: ClassVar[str] = "nearest_mean"

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        asked = fit if ask is None else ask
        known = embed(trained.encoder, fit.data.images, fit.index)
        found = embed(trained.encoder, asked.data.images, asked.index)
        label = torch.from_numpy(fit.label)
        means = torch.stack([known[label == k].mean(0) for k in range(len(fit.data.classes))])
        answer = torch.cdist(found, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1).numpy()
        return accuracy(
            self.name, "accuracy of the nearest class mean", asked.index, answer == np.asarray(asked.label), started
        )


@pytest.mark.long
def test_a_study_is_scored_by_it(small: dict[str, Any], tmp_path: Path) -> None:
    result = run(Study(**small, protocol=NearestMean()), tmp_path / "run")
    assert result.best is not None
    assert result.best.validation > 0.3
    assert result.best.test.n == 2, "without a refit the models of both folds are tested"
