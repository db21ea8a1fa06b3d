"""Soft assignments of images to prototypes or words, and the two figures that tell whether they have collapsed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.world import World


@torch.no_grad()
def assignments(probabilities: Tensor, world: World) -> dict[str, Tensor]:
    """Health signals for a learner's loss parts; both entropies are over log K, so that they lie in [0, 1].

    A method that assigns images to prototypes collapses in one of two ways (Caron et al. 2021, arXiv:2104.14294, section
    5.3): every image is assigned to all prototypes alike, or all images to one prototype.

    Args:
        probabilities: [B, K] of this worker's rows; rows sum to 1.
        world: the workers; the mean assignment is the global batch's.
    Returns:
        ``assignment_entropy``, an image's mean entropy: 1 in the first collapse; ``assignment_balance``, the entropy of the
        mean assignment: 0 in the second collapse.
    """
    most = math.log(max(probabilities.shape[1], 2))
    p = probabilities.float()
    return {
        "assignment_entropy": torch.special.entr(p).sum(1).mean() / most,
        "assignment_balance": torch.special.entr(world.mean(p.mean(0))).sum() / most,
    }
