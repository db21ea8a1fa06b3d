"""A method of one's own: supervised training with the labels smoothed more for classes with few images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from methods import BatchSpec, Classifier, Context, Encoder, Learner, Loss, Method, Optimizer, SharedConfig, Step
from methods.testing import check_method
from orchestrator import Study, run
from search_spaces import Float, knob

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Config(SharedConfig):
    """Knobs of ``smoothed``."""

    smoothing: float = knob(0.1, Float(0.0, 0.4), doc="share of the target spread over all classes", source="Szegedy 2016")


class Smoothed(Learner):
    """Cross-entropy with smoothed labels on augmented images."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("weak", config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        logits = self.model(self.augment(batch.images, batch.stream))
        return Loss(F.cross_entropy(logits, batch.labels(), label_smoothing=self.config.smoothing))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> torch.nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", self.config.lr * self.config.batch_size / 256, self.config.weight_decay)


METHOD = Method("smoothed", "baseline", "Szegedy 2016", "labels smoothed", Config, Smoothed, uses_labels=True)


def test_it_keeps_the_contract() -> None:
    check_method(METHOD)


@pytest.mark.long
def test_a_study_searches_over_it(small: dict[str, Any], tmp_path: Path) -> None:
    result = run(Study(**{**small, "methods": ["supervised", METHOD]}), tmp_path / "run")
    assert set(result.leaderboard()["method"]) == {"supervised", "smoothed"}
