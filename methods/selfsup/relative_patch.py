"""Relative patch: which of its eight neighbours is this patch?

Doersch, Gupta & Efros 2015, "Unsupervised visual representation learning by context prediction", arXiv:1505.05192.
A patch in the middle and one beside it go through the encoder; both embeddings together tell the direction. A gap and a
jitter between patches, and standardised patches, keep borders and colour gradients from telling it.

Deviations: AdamW instead of SGD; all eight neighbours of a middle patch are asked for at once, which shares its encoding;
patches are standardised instead of losing colour channels; the 3 x 3 block lies anywhere in a cropped and mirrored view;
BatchNorm keeps the statistics of whole images.
Raises: TrainingError where patches would be smaller than 4 pixels or the block does not fit into the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.patches import cut, embedded_patches, mosaic, patch_side, standardised
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Float, knob

MIDDLE = 4
NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    patch: float = knob(
        0.25, Float(0.2, 0.3), legal=Float(0.05, 1 / 3), unit="of the image's side", doc="patch side",
        source="Doersch 2015: 96 pixels",
    )  # fmt: skip
    gap: float = knob(0.25, Float(0.0, 0.5), unit="of a patch", doc="gap between patches", source="Doersch 2015: .5")
    jitter: float = knob(
        0.1, Float(0.0, 0.25), legal=Float(0.0, 0.5), unit="of a patch", doc="largest shift of a patch, either way",
        source="Doersch 2015: 7 of 96",
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels: the patch's side, the step from patch to patch, the largest shift, and the block's side."""

    side: int
    pitch: int
    shift: int

    @property
    def block(self) -> int:
        return self.side + 2 * self.pitch + 2 * self.shift


def layout(config: Config, shape: tuple[int, int, int], encoder: Encoder) -> Layout:
    """The layout in images of ``shape``; the gap and then the jitter give way where the block would not fit."""
    length = min(shape[1:])
    side = patch_side(shape, encoder, config.patch * length, "relative_patch")
    gap = min(round(config.gap * side), (length - 3 * side) // 2)
    if gap < 0:
        raise TrainingError(
            f"relative_patch.patch must leave room for 3 patches in {length} pixels, got {config.patch}; lower it"
        )
    return Layout(side, side + gap, min(round(config.jitter * side), (length - 3 * side - 2 * gap) // 2))


class RelativePatch(Learner):
    """Encoder of patches, and an MLP from two of them to one of eight directions."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.layout = layout(config, context.shape, self.backbone)
        self.head: nn.Module = mlp(2 * self.backbone.dim, 256, 8, 2, norm=True)
        self.register_buffer("mean", torch.tensor(context.data.mean))
        self.register_buffer("std", torch.tensor(context.data.std))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def block(self, images: Tensor, stream: RandomStream) -> Tensor:
        """Nine patches [B, 9, C, s, s], row by row, around a random place of a view."""
        x = self.augment(images, stream.fork("view"))
        at = self.layout
        room = torch.tensor([n - at.block + 1 for n in x.shape[2:]], device=x.device)
        corner = (stream.fork("block").uniform(2) * room).long()  # B 2
        shift = stream.fork("jitter").integers(2 * at.shift + 1, 9, 2)  # B 9 2, from 0
        cell = torch.cartesian_prod(torch.arange(3, device=x.device), torch.arange(3, device=x.device)) * at.pitch  # 9 2
        top, left = (corner[:, None] + cell + shift).unbind(2)  # B 9 each
        return cut(x, top, left, at.side)

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        patches = standardised(self.block(batch.images, batch.stream), self.mean, self.std)  # B 9 C s s
        z = embedded_patches(self.backbone, patches.flatten(0, 1), batch.images, step.number).view(len(batch), 9, -1)  # B 9 D
        pairs = torch.cat([z[:, [MIDDLE] * 8], z[:, list(NEIGHBOURS)]], dim=2)  # B 8 2D
        logits = self.head(pairs.flatten(0, 1)).float()  # 8B 8
        target = torch.arange(8, device=logits.device).repeat(len(batch))
        right = (logits.detach().argmax(1) == target).float().mean()
        return Loss(F.cross_entropy(logits, target), {"pretext_accuracy": right})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        h = batch.images.shape[2]
        block = mosaic(self.block(batch.images, batch.stream), border=1)  # n C cS cS
        return {"original | patches": beside(batch.images, F.interpolate(block, (h, h)))}


METHOD = Method(
    name="relative_patch",
    family="selfsup",
    paper="Doersch et al. 2015, arXiv:1505.05192",
    summary="tell which neighbour of the middle patch this is",
    config=Config,
    learner=RelativePatch,
)
