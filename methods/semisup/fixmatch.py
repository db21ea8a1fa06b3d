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
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Batch, Step
from methods.contracts import Context, Loss, Method, PseudoLabels
from methods.parts.masks import confident
from methods.semisup.shared import BranchConfig, EmaLearner
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(BranchConfig):
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


class FixMatch(EmaLearner):
    """A classifier, and the average of its weights, which is the method's answer."""

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.weak = context.augment("weak")
        self.strong = context.augment("strong", config.augmentation_strength)

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        of_labelled = self.weak if c.labelled_augmentation == "weak" else self.strong
        x = of_labelled(labelled.images, labelled.stream.fork("labelled"))  # B C H W
        u_weak = self.weak(pool.images, pool.stream.fork("weak"))  # muB C H W
        u_strong = self.strong(pool.images, pool.stream.fork("strong"))  # muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u_strong])).split([len(x), len(u_strong)])  # B K, muB K
        with torch.no_grad():
            q = self.model(u_weak).softmax(1)  # muB K
        label, mask = confident(q, c.threshold)  # muB, muB
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = (F.cross_entropy(logits_u, label, reduction="none") * mask).mean()
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        return Loss(supervised + c.lambda_u * unsupervised, parts, PseudoLabels(pool.index, label, mask))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        weak = self.weak(batch.images, batch.stream.fork("weak"))
        strong = self.strong(batch.images, batch.stream.fork("strong"))
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
