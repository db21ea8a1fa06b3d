"""Temporal ensembling: agree with the average of all past predictions for the same image.

Laine & Aila 2016, "Temporal ensembling for semi-supervised learning", arXiv:1610.02242.
For every image Z <- a Z + (1 - a) z; after t visits the target is Z / (1 - a^t), which corrects the start from zero.

Deviations: Z moves when its image is visited, not at the end of an epoch, and t counts the image's own visits, so that
the correction stays exact where images are visited unequally often. The cost covers the pool's rows. AdamW without the
paper's ramp-down; no dropout; the weight is set directly instead of as 30 x labelled / all images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.losses import consistency_mse
from methods.parts.ramps import sigmoid_ramp
from methods.semisup.shared import RecipeConfig
from methods.world import World
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    mu: int = knob(3, Int(1, 7), legal=Int(1, 64), doc="unlabelled images per labelled one", source="as mean_teacher")
    momentum: float = knob(
        0.6, Float(0.3, 0.95, log1m=True), legal=Float(0.0, 0.9999), doc="decay of past predictions per visit",
        source="Laine 2016: .6",
    )  # fmt: skip
    weight: float = knob(
        10.0, Float(0.3, 100.0, log=True), legal=Float(0.0, 1e4), doc="largest weight of the consistency cost",
        source="Laine 2016: 30 x labelled share",
    )  # fmt: skip
    ramp: float = knob(
        0.3, Float(0.0, 0.8), legal=Float(0.0, 1.0), unit="share of the training", doc="length of the weight's sigmoid ramp",
        source="Laine 2016: 80 of 300 epochs",
    )  # fmt: skip


class Ensemble(nn.Module):
    """Averages of past predictions, one row an image."""

    sum: Tensor
    visits: Tensor

    def __init__(self, images: int, classes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("sum", torch.zeros(images, classes))
        self.register_buffer("visits", torch.zeros(images, dtype=torch.int64))

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Bias-corrected averages [B, K] for images int64 [B], and float [B]: 1 where the image has been visited at all."""
        visits = self.visits[index]
        seen = visits > 0
        corrected = 1 - self.momentum ** visits.clamp_min(1).to(self.sum.dtype)  # B
        return self.sum[index] / corrected.unsqueeze(1), seen.to(self.sum.dtype)

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor, world: World) -> None:
        """One visit with predictions z [B, K]. An image that is in the global batch twice gets the mean, as one visit."""
        index, z = world.gather(index), world.gather(z.detach().contiguous())  # B of all workers
        same = (index.unsqueeze(0) == index.unsqueeze(1)).to(z.dtype)  # B B
        with torch.autocast(z.device.type, enabled=False):
            mean = same @ z / same.sum(1, keepdim=True)  # B K
        # Rows of one image now hold equal values, so the order in which duplicates are written does not matter.
        self.sum[index] = self.momentum * self.sum[index] + (1 - self.momentum) * mean
        self.visits[index] = self.visits[index] + 1


class TemporalEnsembling(Learner):
    """A classifier and its memory of past predictions."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)
        self.ensemble = Ensemble(len(context.data), context.classes, config.momentum)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W, muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, muB K
        z = logits_u.softmax(1)  # muB K
        target, seen = self.ensemble.targets(pool.index)  # muB K, muB
        self.ensemble.update(pool.index, z, step.world)
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = (consistency_mse(z, target) * seen).mean()
        weight = c.weight * sigmoid_ramp(step.progress, c.ramp)
        parts = {"supervised": supervised.detach(), "consistency": unsupervised.detach(), "seen": seen.mean()}
        return Loss(supervised + weight * unsupervised, parts)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="temporal_ensembling",
    family="semisup",
    paper="Laine & Aila 2016, arXiv:1610.02242",
    summary="agree with the bias-corrected average of past predictions",
    config=Config,
    learner=TemporalEnsembling,
    uses_labels=True,
)
