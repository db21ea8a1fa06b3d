"""Partners for MixUp, drawn from the global batch so that several workers mix what one would. The mix itself is a loss part.

Zhang et al. 2017, "mixup: beyond empirical risk minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.world import World


def shuffled(groups: Sequence[Tensor], rows: Sequence[slice], order: Tensor, world: World) -> list[Tensor]:
    """This worker's rows of several global batches that are concatenated and put in another order; no gradient to them.

    Args:
        groups: G tensors [b_g, ...], this worker's rows of each batch.
        rows: which rows of each global batch are this worker's (``draws.rows``).
        order: int64, a permutation of all rows of all global batches together, the same on every worker.
        world: the workers.
    Returns:
        G tensors [b_g, ...]: what stands, after the reordering, in the places where the groups' own rows stood before.
    """
    everything = torch.cat([world.gather(group.detach()) for group in groups])[order]
    sizes = [len(group) * world.size for group in groups]
    return [part[own] for part, own in zip(everything.split(sizes), rows, strict=True)]
