"""The centre that self-distillation subtracts from its teacher's scores, so that no prototype can win everywhere.

Caron et al. 2021, "Emerging properties in self-supervised vision transformers", arXiv:2104.14294.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.world import World


class Centre(nn.Module):
    """A running mean of scores.

    Attributes:
        mean: float32 [K].
    """

    mean: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(prototypes))

    def forward(self, scores: Tensor) -> Tensor:
        """Scores [B, K] minus the centre."""
        return scores - self.mean

    @torch.no_grad()
    def update(self, scores: Tensor, momentum: float, world: World) -> None:
        """Moves the centre towards the mean over all workers' rows of ``scores`` [B, K]."""
        self.mean.lerp_(world.mean(scores.float().mean(0)), 1 - momentum)
