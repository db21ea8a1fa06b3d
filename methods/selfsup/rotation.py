"""Rotation: which way up is this image?

Gidaris, Singh & Komodakis 2018, "Unsupervised representation learning by predicting image rotations", arXiv:1803.07728.
Every image enters the batch in all four quarter turns; a linear layer on the encoder tells which.

Deviations: AdamW and the loop's schedule instead of SGD with steps. The classifier reads the encoder's pooled embedding.
Images are cropped and mirrored (the paper's CIFAR recipe only mirrors); `augmentation_strength` 0 switches both off.
Raises: UserError where images are not square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import rotate_quarter
from methods.parts.encoders import Encoder
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    batch_size: int = knob(
        128, Int(32, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="images per step, each in 4 turns",
        source="Gidaris 2018: 128",
    )  # fmt: skip


def four_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """[4B, C, H, H], all images unturned, then all turned once, and so on; and int64 [4B], the turns."""
    turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
    return rotate_quarter(images.repeat(4, 1, 1, 1), turns), turns


class Rotation(Learner):
    """Encoder and a linear layer over four turns."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.head = nn.Linear(self.backbone.dim, 4)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        x = self.augment(batch.images, batch.stream)  # B C H W
        views, turns = four_turns(x)  # 4B C H H, 4B
        logits = self.head(self.backbone(views)).float()  # 4B 4
        right = (logits.detach().argmax(1) == turns).float().mean()
        return Loss(F.cross_entropy(logits, turns), {"pretext_accuracy": right})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = self.augment(batch.images, batch.stream)
        turns = torch.arange(len(x), device=x.device) % 4
        return {"original | turned": beside(x, rotate_quarter(x, turns))}


METHOD = Method(
    name="rotation",
    family="selfsup",
    paper="Gidaris et al. 2018, arXiv:1803.07728",
    summary="tell which of four quarter turns an image has taken",
    config=Config,
    learner=Rotation,
)
