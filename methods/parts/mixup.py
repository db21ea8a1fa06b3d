"""MixUp: convex mixes of examples and of their targets, partners drawn from the global batch.

Zhang et al. 2017, "mixup: beyond empirical risk minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.batch import Draws
from methods.world import World


def mix(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * one + (1 - share) * other, row by row.

    Args:
        one, other: [B, ...].
        share: [B], in [0, 1].
    """
    share = share.view(-1, *([1] * (one.dim() - 1))).to(one.dtype)
    return share * one + (1 - share) * other


def partners(x: Tensor, order: Tensor, draws: Draws, world: World) -> Tensor:
    """This worker's rows of the global batch in another order; no gradient to the partners.

    Args:
        x: [b, ...], this worker's rows.
        order: int64 [total], a permutation of the global batch, the same on every worker (``draws.permutation()``).
        draws: the batch's, for which rows are this worker's.
        world: the workers.
    Returns:
        [b, ...]
    """
    return world.gather(x.detach())[order[draws.rows]]


def shuffled(groups: Sequence[Tensor], rows: Sequence[slice], order: Tensor, world: World) -> list[Tensor]:
    """This worker's rows of several global batches that are concatenated and put in another order; no gradient to them.

    Args:
        groups: G tensors [b_g, ...], this worker's rows of each batch.
        rows: which rows of each global batch are this worker's.
        order: int64, a permutation of all rows of all global batches together, the same on every worker.
        world: the workers.
    Returns:
        G tensors [b_g, ...]: what stands, after the reordering, in the places where the groups' own rows stood before.
    """
    everything = torch.cat([world.gather(group.detach()) for group in groups])[order]
    sizes = [len(group) * world.size for group in groups]
    return [part[own] for part, own in zip(everything.split(sizes), rows, strict=True)]
