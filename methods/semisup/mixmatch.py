"""MixMatch: guess labels by averaging and sharpening, then mix labelled and unlabelled images without distinction.

Berthelot et al. 2019, "MixMatch: a holistic approach to semi-supervised learning", arXiv:1905.02249.
Comments number the lines of the paper's Algorithm 1.

Where public implementations disagree (results at 250 labels differ by many points): the weight lambda_u is ramped over the
first part of the training and then constant, as in the paper; PyTorch ports ramp it over the whole training. As in the
paper, guesses come from the model itself, not from its average, and the average of the weights is evaluated.

Deviations: AdamW without the authors' extra weight decay. The batch of unlabelled images may be mu times the labelled one.
All mixed images pass the model together, so BatchNorm sees them all; the authors interleave them into batches of size B
and let the first alone move the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from methods.batch import Step
from methods.contracts import Context, Loss, Method, PseudoLabels
from methods.parts.losses import consistency_mse, sharpen
from methods.parts.mixup import mix_all
from methods.parts.ramps import linear_ramp
from methods.semisup.shared import EmaConfig, EmaLearner, RecipeConfig
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(EmaConfig, RecipeConfig):
    """Knobs."""

    sharpening_temperature: float = knob(
        0.5, Float(0.1, 1.0), legal=Float(0.01, 10), doc="T of the sharpening", source="Berthelot 2019: .5"
    )
    guesses: int = knob(
        2, Int(1, 4), legal=Int(1, 16), doc="K, augmentations averaged into a guess", source="Berthelot 2019: 2"
    )
    alpha: float = knob(
        0.75, Float(0.1, 2.0, log=True), legal=Float(1e-3, 100), doc="lambda ~ Beta(alpha, alpha)", source="Berthelot 2019: .75"
    )
    lambda_u: float = knob(
        30.0, Float(1.0, 150.0, log=True), legal=Float(0.0, 1e4), doc="largest weight of the unlabelled loss",
        source="Berthelot 2019: 75 on CIFAR-10",
    )  # fmt: skip
    ramp: float = knob(
        0.3, Float(0.0, 1.0), unit="share of the training", doc="length of lambda_u's linear ramp",
        source="Berthelot 2019: 16,000 steps",
    )  # fmt: skip


class MixMatch(EmaLearner):
    """A classifier, and the average of its weights, which is the method's answer."""

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.classes = context.classes
        self.augment = context.augment(config.augmentation, config.augmentation_strength)

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()  # 1: X and U; 2 to 9: for all b at once
        rounds = range(c.guesses)
        x_hat = self.augment(labelled.images, labelled.stream.fork("x"))  # 3: B C H W
        u_hat = [self.augment(pool.images, pool.stream.fork(k)) for k in rounds]  # 4 to 6: K times muB C H W
        with torch.no_grad():
            q_bar = self.model(torch.cat(u_hat)).softmax(1).unflatten(0, (c.guesses, -1)).mean(0)  # 7: muB K
        q = sharpen(q_bar, c.sharpening_temperature)  # 8: muB K
        p = F.one_hot(labelled.labels(), self.classes).float()  # B K
        groups = [(x_hat, p), *((u, q) for u in u_hat)]  # 10, 11: X^ and U^
        stream = [labelled.stream.fork("lambda"), *(pool.stream.fork(f"lambda {k}") for k in rounds)]
        mixed = mix_all(groups, stream, c.alpha, labelled.stream.fork("shuffle"), step.world)  # 12 to 15
        logits = self.model(torch.cat([images for images, _ in mixed]))  # B+KmuB K
        target = torch.cat([targets for _, targets in mixed])  # B+KmuB K
        b = len(labelled)
        supervised = F.cross_entropy(logits[:b], target[:b])
        unsupervised = consistency_mse(logits[b:].softmax(1), target[b:]).mean()
        weight = c.lambda_u * linear_ramp(step.progress, c.ramp)
        parts = {
            "supervised": supervised.detach(),
            "unsupervised": unsupervised.detach(),
            "guess_confidence": q.max(1).values.mean(),
        }
        guesses = PseudoLabels(pool.index, q.argmax(1), torch.ones_like(q[:, 0]))
        return Loss(supervised + weight * unsupervised, parts, guesses)


METHOD = Method(
    name="mixmatch",
    family="semisup",
    paper="Berthelot et al. 2019, arXiv:1905.02249",
    summary="average and sharpen guesses, then mix labelled and unlabelled images",
    config=Config,
    learner=MixMatch,
    uses_labels=True,
)
