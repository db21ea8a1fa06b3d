"""Self-supervised tasks that a learner solves beside its own: rotations, and relative positions of patches.

B images, C channels, H, W size, P patches, s patch side in pixels, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.batch import RandomStream
from methods.parts.augment import rotate_quarter
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.modes import still_statistics
from methods.parts.patches import jittered_grid, patch_side

HIDDEN = 256
GRID = 3
MIDDLE = 4
NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)


class Auxiliary(nn.Module, ABC):
    """A pretext task with a head of its own. Its images leave the encoder's running statistics alone."""

    @abstractmethod
    def logits(self, encoder: Encoder, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Logits [n, k] and targets int64 [n] from float images [B, C, H, W] and one row of draws per image."""

    def forward(self, encoder: Encoder, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy and the accuracy on the pretext task."""
        with still_statistics(encoder):
            logits, target = self.logits(encoder, images, stream)
        right = (logits.detach().argmax(dim=1) == target).float().mean()
        return cross_entropy(logits.float(), target), right


class TurnTask(Auxiliary):
    """Which of the four quarter turns (Gidaris et al. 2018, https://arxiv.org/abs/1803.07728)? One drawn turn per image."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.head = mlp(encoder.dim, HIDDEN, 4, 2, norm=True)

    def logits(self, encoder: Encoder, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        turns = stream.integers(4)  # [B]
        return self.head(encoder(rotate_quarter(images, turns))), turns


class NeighbourTask(Auxiliary):
    """Which of its eight neighbours is a patch (Doersch et al. 2015, arXiv:1505.05192)? Eight pairs per image."""

    def __init__(self, encoder: Encoder, shape: tuple[int, int, int], method: str) -> None:
        """
        Args:
            shape: (C, H, W) of the images.
            method: named in errors.
        Raises:
            TrainingError: a ninth of the image is too small to be a patch.
        """
        super().__init__()
        self.side = patch_side(shape, encoder, 0.85 * (min(shape[1:]) // GRID), method)
        self.head = mlp(2 * encoder.dim, HIDDEN, len(NEIGHBOURS), 2, norm=True)

    def logits(self, encoder: Encoder, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        patches = jittered_grid(images, GRID, self.side, stream)  # [B, 9, C, s, s]
        z = encoder(patches.flatten(0, 1)).unflatten(0, (-1, GRID * GRID))  # [B, 9, D]
        pairs = torch.cat([z[:, [MIDDLE] * len(NEIGHBOURS)], z[:, list(NEIGHBOURS)]], dim=2)  # [B, 8, 2D]
        target = torch.arange(len(NEIGHBOURS), device=z.device).repeat(len(images))
        return self.head(pairs.flatten(0, 1)), target
