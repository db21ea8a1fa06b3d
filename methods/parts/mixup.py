"""Partners for MixUp, drawn from the global batch so that several workers mix what one would. The mix itself is a loss part.

Zhang et al. 2017, "mixup: beyond empirical risk minimization", arXiv:1710.09412.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.batch import RandomStream
from methods.parts.losses import mixup
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


Pairs = list[tuple[Tensor, Tensor]]
"""Groups of images [b, C, H, W] with their targets [b, K]."""


def mix_all(groups: Pairs, stream: Sequence[RandomStream], alpha: float, shuffle: RandomStream, world: World) -> Pairs:
    """Every group's images and targets, mixed with partners from all groups of all workers, and nearer to their own.

    Lines 12 to 15 of MixMatch's Algorithm 1 (Berthelot et al. 2019, arXiv:1905.02249).

    Args:
        groups: the augmented labelled images and the unlabelled views, each with targets.
        stream: a stream for each group, over its rows.
        alpha: lambda ~ Beta(alpha, alpha), one for each image.
        shuffle: the stream of the partners.
        world: the workers.
    """
    total = sum(each.total for each in stream)
    order, rows = torch.randperm(total, generator=shuffle.generator, device=shuffle.device), [each.rows for each in stream]
    w_x = shuffled([x for x, _ in groups], rows, order, world)  # 12: W = Shuffle(Concat(X^, U^)), images
    w_p = shuffled([p for _, p in groups], rows, order, world)  # 12: and their targets
    mixed = []
    for (x, p), x_other, p_other, each in zip(groups, w_x, w_p, stream, strict=True):
        share = each.beta(alpha)
        nearer = torch.maximum(share, 1 - share)  # lambda' = max(lambda, 1 - lambda)
        mixed.append(mixup(x, p, x_other, p_other, nearer))  # 13, 14: X' and U'
    return mixed  # 15
