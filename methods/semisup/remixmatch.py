"""ReMixMatch: MixMatch with distribution alignment, augmentation anchoring and a rotation loss.

Berthelot et al. 2019, "ReMixMatch: semi-supervised learning with distribution alignment and augmentation anchoring",
arXiv:1911.09785.
The guess for a weakly augmented image, aligned to the labels' class shares and sharpened, is the target of K strongly
augmented ones; all are mixed with the strongly augmented labelled ones; the first strong view also enters unmixed, and
turned by a random quarter.

Deviations: RandAugment and cutout instead of CTAugment. K = 2 (the paper's best is 8). AdamW. The weights of what rests on
guesses are ramped up over a share of the training (the authors' code ramps lambda_u over its first 16,384 steps): from its
first guesses alone a short training learns its own mistakes. The average of the weights is evaluated, as in the paper.
BatchNorm as in `mixmatch`; the turned images' and the guesses' passes move its statistics too.
Raises: UserError where images are not square, since they cannot be turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from methods.batch import Step
from methods.contracts import Context, Loss, Method, PseudoLabels
from methods.parts.alignment import Alignment, class_shares
from methods.parts.augment import rotate_quarter
from methods.parts.losses import sharpen
from methods.parts.mixup import mix_all
from methods.parts.ramps import linear_ramp
from methods.semisup.shared import EmaConfig, EmaLearner
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(EmaConfig):
    """Knobs."""

    sharpening_temperature: float = knob(
        0.5, Float(0.1, 1.0), legal=Float(0.01, 10), doc="T of the sharpening", source="Berthelot 2019: .5"
    )
    guesses: int = knob(
        2, Int(1, 4), legal=Int(1, 16), doc="K, strong views of an unlabelled image", source="Berthelot 2019: 8"
    )
    alpha: float = knob(
        0.75, Float(0.1, 2.0, log=True), legal=Float(1e-3, 100), doc="lambda ~ Beta(alpha, alpha)", source="Berthelot 2019: .75"
    )
    lambda_u: float = knob(
        1.5,
        Float(0.1, 5.0, log=True),
        legal=Float(0.0, 1e3),
        doc="weight of the mixed unlabelled loss",
        source="Berthelot 2019: 1.5",
    )
    lambda_strong: float = knob(
        0.5,
        Float(0.05, 5.0, log=True),
        legal=Float(0.0, 1e3),
        doc="weight of the unmixed strong view",
        source="Berthelot 2019: .5",
    )
    ramp: float = knob(
        0.5, Float(0.0, 1.0), unit="share of the training", doc="length of the linear ramp of lambda_u and lambda_strong",
        source="the authors' code: 16,384 steps",
    )  # fmt: skip
    lambda_rotation: float = knob(
        0.5, Float(0.05, 2.0, log=True), legal=Float(0.0, 1e3), doc="weight of the rotation loss", source="Berthelot 2019: .5"
    )


class ReMixMatch(EmaLearner):
    """A classifier with a rotation head, and the average of its weights, which is the method's answer."""

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.classes = context.classes
        self.weak = context.augment("weak")
        self.strong = context.augment("strong", config.augmentation_strength)
        self.rotation_head = nn.Linear(self.model.encoder.dim, 4)
        self.alignment = Alignment(class_shares(torch.from_numpy(context.data.label.copy()), context.classes))

    def loss(self, step: Step) -> Loss:
        c, world = self.config, step.world
        labelled, pool = step.from_labelled(), step.from_pool()
        x_hat = self.strong(labelled.images, labelled.stream.fork("strong"))  # B C H W
        u_hat = [self.strong(pool.images, pool.stream.fork(k)) for k in range(c.guesses)]  # K times muB C H W
        u_weak = self.weak(pool.images, pool.stream.fork("weak"))  # muB C H W
        with torch.no_grad():
            q = self.model(u_weak).softmax(1)  # muB K
            q = self.alignment(q, step.number, world)  # distribution alignment
            q = sharpen(q, c.sharpening_temperature)
        p = F.one_hot(labelled.labels(), self.classes).float()  # B K
        groups = [(x_hat, p), *((u, q) for u in u_hat), (u_weak, q)]  # augmentation anchoring: one guess for all views
        stream = [labelled.stream.fork("lambda"), *(pool.stream.fork(f"lambda {k}") for k in range(c.guesses + 1))]
        mixed = mix_all(groups, stream, c.alpha, labelled.stream.fork("shuffle"), world)
        logits = self.model(torch.cat([*(images for images, _ in mixed), u_hat[0]]))  # B+(K+1)muB+muB K
        b, m = len(labelled), len(pool)
        target = torch.cat([targets for _, targets in mixed])  # B+(K+1)muB K
        supervised = F.cross_entropy(logits[:b], target[:b])
        unsupervised = F.cross_entropy(logits[b:-m], target[b:])
        strong = F.cross_entropy(logits[-m:], q)
        turns = pool.stream.fork("turns").integers(4)  # muB
        rotation = F.cross_entropy(self.rotation_head(self.model.encoder(rotate_quarter(u_hat[0], turns))).float(), turns)
        parts = {
            "supervised": supervised.detach(),
            "unsupervised": unsupervised.detach(),
            "strong": strong.detach(),
            "rotation": rotation.detach(),
            "guess_confidence": q.max(1).values.mean(),
        }
        guesses = PseudoLabels(pool.index, q.argmax(1), torch.ones_like(q[:, 0]))
        guessed = linear_ramp(step.progress, c.ramp) * (c.lambda_u * unsupervised + c.lambda_strong * strong)
        total_loss = supervised + guessed + c.lambda_rotation * rotation
        return Loss(total_loss, parts, guesses)


METHOD = Method(
    name="remixmatch",
    family="semisup",
    paper="Berthelot et al. 2019, arXiv:1911.09785",
    summary="aligned, anchored guesses for strong views, mixed with labels, and rotations",
    config=Config,
    learner=ReMixMatch,
    uses_labels=True,
)
