"""Entropy minimization: whatever the class of an unlabelled image, be sure of it.

Grandvalet & Bengio 2004, "Semi-supervised learning by entropy minimization", NeurIPS 17.

Deviations: a neural classifier on weakly augmented images instead of logistic regression; a constant weight, no annealing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.losses import entropy
from methods.semisup.shared import RecipeConfig
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    weight: float = knob(
        0.3, Float(0.01, 3.0, log=True), legal=Float(0.0, 100), doc="weight of the entropy", source="Grandvalet 2004: below 1"
    )


class EntropyMinimization(Learner):
    """A classifier that is drawn to decide."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W, muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, muB K
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsure = entropy(logits_u).mean()
        parts = {"supervised": supervised.detach(), "entropy": unsure.detach()}
        return Loss(supervised + self.config.weight * unsure, parts)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="entropy_minimization",
    family="semisup",
    paper="Grandvalet & Bengio 2004, NeurIPS 17",
    summary="cross-entropy on labels, low entropy on the pool",
    config=Config,
    learner=EntropyMinimization,
    uses_labels=True,
)
