"""UDA: the sharpened prediction for a weakly augmented image teaches the strongly augmented one.

Xie et al. 2019, "Unsupervised data augmentation for consistency training", arXiv:1904.12848.
Training-signal annealing leaves labelled images out of the loss once the model is surer of them than a rising limit.

Where public sources disagree: the authors' code has masking and sharpening off unless set, and their CIFAR-10 script sets
threshold .8, temperature .4, batches of 64 with 7 times as many unlabelled images, and no annealing. The script is
followed, but for smaller batches by default (see ``SemiConfig``).

Deviations: AdamW instead of SGD. As in `fixmatch`, the average of the weights is evaluated, and the weak branch is a
forward pass of its own. The weak view is translated and flipped, with a little noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Step
from methods.contracts import Context, Loss, Method, PseudoLabels
from methods.parts.losses import sharpen
from methods.parts.masks import confident
from methods.semisup.shared import BranchConfig, EmaLearner
from methods.world import World
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(BranchConfig):
    """Knobs."""

    mu: int = knob(
        3,
        Int(1, 7),
        legal=Int(1, 64),
        doc="unlabelled images per labelled one",
        source="Xie 2019: 5 and 7; fewer for short trainings",
    )
    sharpening_temperature: float = knob(
        0.4, Float(0.1, 1.0), legal=Float(0.01, 10), doc="T of the weak prediction", source="Xie 2019: .4"
    )
    threshold: float = knob(
        0.8, Float(0.3, 0.98), legal=Float(0.0, 1.0), doc="confidence from which a prediction teaches", source="Xie 2019: .8"
    )
    lambda_u: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1e3), doc="weight of the unlabelled loss", source="Xie 2019: 1"
    )
    annealing: str = knob(
        "none", Choice(("none", "linear", "log", "exp")), doc="schedule of the training-signal annealing", source="Xie 2019"
    )


def signal_limit(schedule: str, progress: float, classes: int) -> float:
    """The probability of its true class above which a labelled image no longer counts: from 1/K to 1 along the schedule."""
    if schedule == "none":
        return 1.0
    rise = {
        "linear": progress,
        "log": 1 - math.exp(-5 * progress),
        "exp": math.exp(5 * (progress - 1)),
    }[schedule]
    return rise * (1 - 1 / classes) + 1 / classes


def annealed(logits: Tensor, label: Tensor, limit: float, world: World) -> Tensor:
    """Cross-entropy over the rows whose true class is not yet more probable than ``limit``, averaged over those of all workers.

    Args:
        logits: [B, K].
        label: int64 [B].
        limit: in [1/K, 1].
        world: the workers.
    """
    loss = F.cross_entropy(logits, label, reduction="none")  # B
    counts = (torch.exp(-loss.detach()) <= limit).to(loss.dtype)  # B
    # The mean over workers of size * sum / total is the global batch's sum / total.
    return (loss * counts).sum() * world.size / world.sum(counts.sum()).clamp_min(1)


class UDA(EmaLearner):
    """A classifier, and the average of its weights, which is the method's answer."""

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.classes = context.classes
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
        target = sharpen(q, c.sharpening_temperature)  # muB K
        divergence = F.kl_div(logits_u.log_softmax(1), target, reduction="none").sum(1)  # muB
        limit = signal_limit(c.annealing, step.progress, self.classes)
        supervised = annealed(logits_x, labelled.labels(), limit, step.world)
        unsupervised = (divergence * mask).mean()
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        return Loss(supervised + c.lambda_u * unsupervised, parts, PseudoLabels(pool.index, label, mask))


METHOD = Method(
    name="uda",
    family="semisup",
    paper="Xie et al. 2019, arXiv:1904.12848",
    summary="sharpened predictions on weak views teach strong views",
    config=Config,
    learner=UDA,
    uses_labels=True,
)
