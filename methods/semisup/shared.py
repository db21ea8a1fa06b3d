"""What the semi-supervised methods have in common: knobs, feeds, and teachers that are classifiers."""

from __future__ import annotations

from dataclasses import dataclass

from methods.batch import Feeds
from methods.contracts import Optimizer, SharedConfig
from methods.parts.ema import Ema
from methods.parts.heads import Classifier
from methods.parts.labelling import Frozen
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class SemiConfig(SharedConfig):
    """Small batches: with few labels a large one repeats the same images, and pseudo-labels need many steps to grow sure.

    FixMatch's 64 labelled and 448 unlabelled images make a few hundred steps in a minute on a CPU, which is too few. The
    papers' values lie in the search ranges.
    """

    lr: float = knob(
        1.5e-2, Float(1e-3, 6e-2, log=True), legal=Float(1e-8, 100), unit="per 256 labelled images",
        doc="learning rate of AdamW", source="Loshchilov & Hutter 2019",
    )  # fmt: skip
    batch_size: int = knob(
        32, Int(16, 128, power_of_two=True), legal=Int(2, 65536), unit="images", doc="labelled images per step",
        source="Sohn 2020: 64; fewer for short trainings",
    )  # fmt: skip
    mu: int = knob(1, Int(1, 7), legal=Int(1, 64), doc="unlabelled images per labelled one in a step", source="Sohn 2020")

    def feeds(self) -> Feeds:
        """B labelled images and mu B of the pool."""
        return Feeds(pool=self.mu * self.batch_size, labelled=self.batch_size)

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay)


def classifier(teacher: Ema | Frozen) -> Classifier:
    """The classifier that a teacher is a copy of."""
    inside = teacher.module
    assert isinstance(inside, Classifier), type(inside)
    return inside
