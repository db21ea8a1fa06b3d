"""Exemplar: each of a few thousand patches is a class of its own, recognised under strong transformations.

Dosovitskiy, Fischer, Springenberg, Riedmiller & Brox 2014, "Discriminative unsupervised feature learning with exemplar
convolutional neural networks", arXiv:1406.6909.

Deviations: AdamW instead of SGD. An exemplar is a whole image, since images are as small as the paper's 32 x 32 patches, and
crops of it are part of the transformation; the simclr recipe stands in for the paper's list (translation, scale, colour,
contrast; no rotation). The pool's images choose among the exemplars by their index modulo their number, so that every class
comes equally often. Classes are compared by cosine over a temperature, without which rarely seen classes learn little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import CosineHead, mlp
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    exemplars: int = knob(
        4096, Int(512, 16384, power_of_two=True), legal=Int(2, 1048576), doc="surrogate classes, at most the images there are",
        source="Dosovitskiy 2014: 8000 to 32000",
    )  # fmt: skip
    temperature: float = knob(
        0.1, Float(0.05, 1.0, log=True), legal=Float(1e-3, 1e2), doc="of the softmax over classes", source="Wu 2018: .07"
    )


class Exemplar(Learner):
    """Encoder, projection, and a cosine classifier over the exemplars."""

    chosen: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        count = min(config.exemplars, len(context.data))
        self.head = mlp(self.backbone.dim, self.backbone.dim, 128, 2)
        self.classes = CosineHead(128, count, config.temperature)
        # Every so manieth image, and no part of the state: it follows from the data.
        positions = torch.linspace(0, len(context.data) - 1, count).long()
        self.register_buffer("chosen", context.data.images.take(positions), persistent=False)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        number = batch.index % len(self.chosen)  # B
        x = self.augment(self.chosen[number], batch.stream)  # B C H W
        logits = self.classes(self.head(self.backbone(x)))  # B K
        right = (logits.detach().argmax(1) == number).float().mean()
        return Loss(F.cross_entropy(logits, number), {"pretext_accuracy": right})

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="exemplar",
    family="selfsup",
    paper="Dosovitskiy et al. 2014, arXiv:1406.6909",
    summary="every exemplar is a class of its own under strong transformations",
    config=Config,
    learner=Exemplar,
)
