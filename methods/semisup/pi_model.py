"""Pi-model: two views of one image get the same prediction, and both are moved towards each other.

Laine & Aila 2016, "Temporal ensembling for semi-supervised learning", arXiv:1610.02242.
The gradient goes through both views. The paper compares class probabilities; S3 writes logits: a knob, the paper's by default.

Deviations: AdamW without the paper's ramp-down. No dropout; the views differ by their augmentation. The weight is set
directly instead of as 100 x labelled / all images.
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
from methods.parts.losses import consistency_mse
from methods.parts.ramps import sigmoid_ramp
from methods.semisup.shared import RecipeConfig
from search_spaces.domains import Choice, Float, Variant, When, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    cost: str = knob(
        "probabilities",
        Choice(("probabilities", "logits")),
        doc="what is compared",
        source="Laine 2016: probabilities; S3: logits",
    )
    weight: float = knob(
        10.0, Float(0.3, 100.0, log=True), legal=Float(0.0, 1e4), doc="largest weight of the consistency cost",
        source="Laine 2016: 100 x labelled share", variants=(Variant(When("cost", "logits"), 0.1, Float(3e-3, 3.0, log=True)),),
    )  # fmt: skip
    ramp: float = knob(
        0.3, Float(0.0, 0.8), legal=Float(0.0, 1.0), unit="share of the training", doc="length of the weight's sigmoid ramp",
        source="Laine 2016: 80 of 300 epochs",
    )  # fmt: skip


class PiModel(Learner):
    """A classifier that agrees with itself."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        views = [self.augment(batch.images, batch.stream.fork(v)) for v in (1, 2) for batch in (labelled, pool)]
        one, two = self.model(torch.cat(views)).chunk(2)  # B+muB K each
        supervised = F.cross_entropy(one[: len(labelled)], labelled.labels())
        compared = (one, two) if c.cost == "logits" else (one.softmax(1), two.softmax(1))
        unsupervised = consistency_mse(*compared).mean()  # gradient to both views
        weight = c.weight * sigmoid_ramp(step.progress, c.ramp)
        parts = {
            "supervised": supervised.detach(),
            "consistency": unsupervised.detach(),
            "agreement": (one.detach().argmax(1) == two.detach().argmax(1)).float().mean(),
        }
        return Loss(supervised + weight * unsupervised, parts)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="pi_model",
    family="semisup",
    paper="Laine & Aila 2016, arXiv:1610.02242",
    summary="two views of an image get the same prediction",
    config=Config,
    learner=PiModel,
    uses_labels=True,
)
