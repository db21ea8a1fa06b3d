"""Jigsaw: in which permutation are the patches of this image?

Noroozi & Favaro 2016, "Unsupervised learning of visual representations by solving jigsaw puzzles", arXiv:1603.09246.
Each patch goes through the encoder alone; the embeddings in their shuffled order tell the permutation, one of a set chosen
for great Hamming distance. Patches have random gaps and are standardised one by one, so that borders and brightness tell
nothing.

Deviations: AdamW instead of SGD; the encoder itself sees the patches, instead of an AlexNet cut at its last layers; a small
MLP joins them; hundreds of permutations at most by default, not 1000; BatchNorm keeps the statistics of whole images.
Raises: TrainingError where patches would be smaller than 4 pixels, or there are fewer permutations than asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.patches import embedded_patches, far_permutations, jittered_grid, mosaic, patch_side, shuffled, standardised
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Choice, Float, Int, Variant, When, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    grid: int = knob(3, None, legal=Choice((2, 3)), unit="cells a side", doc="the puzzle's grid", source="Noroozi 2016: 3")
    permutations: int = knob(
        64, Int(16, 512, power_of_two=True), legal=Int(2, 10000), doc="size of the permutation set",
        variants=(Variant(When("grid", 2), 24, Int(4, 24)),), source="Noroozi 2016: 1000 on ImageNet",
    )  # fmt: skip
    patch: float = knob(
        0.8, Float(0.5, 1.0), legal=Float(0.1, 1.0), unit="of a cell", doc="patch side; the rest is jitter and gap",
        source="Noroozi 2016: 64 of 75",
    )  # fmt: skip


class Jigsaw(Learner):
    """Encoder of patches, and an MLP from all of them to the permutation."""

    permutations: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        cell = min(context.shape[1:]) // config.grid
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.side = patch_side(context.shape, self.backbone, config.patch * cell, "jigsaw")
        self.head: nn.Module = mlp(config.grid**2 * self.backbone.dim, 512, config.permutations, 2, norm=True)
        self.register_buffer("permutations", far_permutations(config.grid**2, config.permutations))
        self.register_buffer("mean", torch.tensor(context.data.mean))
        self.register_buffer("std", torch.tensor(context.data.std))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def puzzle(self, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Patches [B, P, C, s, s] of a view in one of the permutations, and which, int64 [B]."""
        view = self.augment(images, stream.fork("view"))
        patches = jittered_grid(view, self.config.grid, self.side, stream.fork("places"))
        which = stream.fork("order").integers(len(self.permutations))
        return shuffled(patches, self.permutations[which]), which

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        patches, which = self.puzzle(batch.images, batch.stream)  # B P C s s, B
        x = standardised(patches, self.mean, self.std).flatten(0, 1)  # BP C s s
        z = embedded_patches(self.backbone, x, batch.images, step.number)  # BP D
        logits = self.head(z.view(len(batch), -1)).float()  # B K
        right = (logits.detach().argmax(1) == which).float().mean()
        return Loss(F.cross_entropy(logits, which), {"pretext_accuracy": right})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        h = batch.images.shape[2]
        puzzle = mosaic(self.puzzle(batch.images, batch.stream)[0], border=1)  # n C cS cS
        return {"original | jigsaw": beside(batch.images, F.interpolate(puzzle, (h, h)))}


METHOD = Method(
    name="jigsaw",
    family="selfsup",
    paper="Noroozi & Favaro 2016, arXiv:1603.09246",
    summary="tell the permutation of an image's patches",
    config=Config,
    learner=Jigsaw,
)
