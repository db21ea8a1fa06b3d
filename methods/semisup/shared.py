"""What the semi-supervised methods have in common: knobs, feeds, and teachers that are classifiers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Optimizer, SharedConfig
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import Frozen
from methods.parts.ramps import warmed_momentum
from search_spaces.domains import Choice, Float, Int, knob

RECIPES = Choice(("weak", "strong"))


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

    def batch_spec(self) -> BatchSpec:
        """B labelled images and mu B of the pool."""
        return BatchSpec(pool=self.mu * self.batch_size, labelled=self.batch_size)

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay)


@dataclass(frozen=True)
class RecipeConfig(SemiConfig):
    """Of methods that look at labelled and unlabelled images alike."""

    augmentation: str = knob(
        "weak", RECIPES, doc="augmentation of every image", source="Oliver 2018: the same for method and baseline"
    )


def classifier(teacher: Ema | Frozen) -> Classifier:
    """The classifier that a teacher is a copy of."""
    inside = teacher.module
    assert isinstance(inside, Classifier), type(inside)
    return inside


@dataclass(frozen=True)
class EmaConfig(SemiConfig):
    """Of methods whose answer is an average of the weights."""

    momentum: float = knob(
        0.99, Float(0.9, 0.9999, log1m=True), legal=Float(0.0, 0.99999), doc="decay of the evaluated average of weights",
        source="Berthelot 2019, Sohn 2020: .999 over 2^20 steps",
    )  # fmt: skip


@dataclass(frozen=True)
class BranchConfig(EmaConfig):
    """Of methods whose weak view of an unlabelled image teaches its strong one."""

    labelled_augmentation: str = knob(
        "weak", RECIPES, doc="augmentation of labelled images", source="Sohn 2020: weak; Berthelot 2019 (ReMixMatch): strong"
    )


class EmaLearner(Learner):
    """A classifier, ``model``, and the average of its weights, ``average``, which is the method's answer."""

    config: EmaConfig

    def __init__(self, config: EmaConfig, context: Context) -> None:
        super().__init__()
        self.config = config
        self.model = Classifier(context.new_encoder(), context.classes)
        self.average = Ema(self.model)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def after_step(self, step: Step) -> None:
        self.average.update(self.model, warmed_momentum(self.config.momentum, step.number))

    def encoder(self) -> Encoder:
        return classifier(self.average).encoder

    def predictor(self) -> nn.Module:
        return classifier(self.average)

    def optimizer(self) -> Optimizer:
        return self.config.adamw()
