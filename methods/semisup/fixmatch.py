"""FixMatch: where the prediction for a weakly augmented image is confident, it is the label of the strongly augmented one.

Sohn et al. 2020, "FixMatch: simplifying semi-supervised learning with consistency and confidence", arXiv:2001.07685.

Deviations: AdamW instead of SGD; smaller batches by default (see ``SemiConfig``). The averaged weights are evaluated, as in
the paper, but with the decay warmed up and .99 by default, because small budgets have hundreds of steps rather than a
million. The weak branch needs no gradient and is a forward pass of its own, so BatchNorm takes its statistics apart from
the labelled and strong images'; the authors' code interleaves all three in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, Feeds, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.masks import confident
from methods.parts.ramps import warmed_momentum
from methods.semisup.shared import SemiConfig, classifier
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SemiConfig):
    """Knobs."""

    mu: int = knob(
        3,
        Int(1, 7),
        legal=Int(1, 64),
        doc="unlabelled images per labelled one",
        source="Sohn 2020: 7; fewer for short trainings",
    )
    threshold: float = knob(
        0.95, Float(0.5, 0.99), legal=Float(0.0, 1.0), doc="confidence from which a prediction is a label",
        source="Sohn 2020: .95",
    )  # fmt: skip
    lambda_u: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1e3), doc="weight of the unlabelled loss", source="Sohn 2020: 1"
    )
    momentum: float = knob(
        0.99, Float(0.9, 0.9999, log1m=True), legal=Float(0.0, 0.99999), doc="decay of the evaluated average of weights",
        source="Sohn 2020: .999 over 2^20 steps",
    )  # fmt: skip


class FixMatch(Learner):
    """A classifier, and the average of its weights, which is the method's answer."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.weak = context.augment("weak")
        self.strong = context.augment("strong", config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)
        self.average = Ema(self.model)

    def feeds(self) -> Feeds:
        return self.config.feeds()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x = self.weak(labelled.images, labelled.draws.child("weak"))  # B C H W
        u_weak = self.weak(pool.images, pool.draws.child("weak"))  # muB C H W
        u_strong = self.strong(pool.images, pool.draws.child("strong"))  # muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u_strong])).split([len(x), len(u_strong)])  # B K, muB K
        with torch.no_grad():
            q = self.model(u_weak).softmax(1)  # muB K
        label, mask = confident(q, c.threshold)  # muB, muB
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = (F.cross_entropy(logits_u, label, reduction="none") * mask).mean()
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        return Loss(supervised + c.lambda_u * unsupervised, parts, PseudoLabels(pool.index, label, mask))

    def after_step(self, step: Step) -> None:
        self.average.update(self.model, warmed_momentum(self.config.momentum, step.number))

    def encoder(self) -> Encoder:
        return classifier(self.average).encoder

    def predictor(self) -> nn.Module:
        return classifier(self.average)

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        weak = self.weak(batch.images, batch.draws.child("weak"))
        strong = self.strong(batch.images, batch.draws.child("strong"))
        return {"weak and strong": torch.cat([weak, strong], dim=3)}


METHOD = Method(
    name="fixmatch",
    family="semisup",
    paper="Sohn et al. 2020, arXiv:2001.07685",
    summary="confident predictions on weak views label strong views",
    config=Config,
    learner=FixMatch,
    uses_labels=True,
)
