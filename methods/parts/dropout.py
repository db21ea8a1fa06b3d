"""Dropout whose masks come from the batch's draws, so that several workers drop what one would."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.batch import RandomStream


def dropout(z: Tensor, rate: float, *stream: RandomStream) -> Tensor:
    """Embeddings with a share of their units set to zero and the others scaled up.

    Args:
        z: [B, D], the rows of one or several batches.
        rate: share of units dropped, in [0, 1).
        stream: one stream for each of those batches, in order.
    """
    keep = torch.cat([each.chance(1 - rate, z.shape[1]) for each in stream])  # B D
    return z * keep / (1 - rate)
