"""What contrastive methods need around their losses: samples of negatives, a deterministic bank, how often partners are found.

B rows on this worker, G in the global batch, D embedding, K negatives, N images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import RandomStream
from methods.parts.losses.precision import full_precision
from methods.parts.queue import MemoryBank
from methods.world import World


@full_precision
def sampled_nt_xent(
    one: Tensor, two: Tensor, temperature: float, world: World, normalise: bool, negatives: int, stream: RandomStream
) -> Tensor:
    """NT-Xent whose denominators hold the partner and a random sample of the 2G - 2 views of other images.

    Args:
        one, two: float [B, D], two views of the same images in the same order.
        temperature: divides the similarities.
        world: the workers; negatives come from the global batch.
        normalise: compare by cosine, otherwise by dot product.
        negatives: size of each view's sample; all where there are not that many.
        stream: of the global batch.
    Returns:
        scalar, the mean over this worker's 2B views.
    """
    logits, own, partner = _view_scores(one, two, world, normalise)
    places = torch.arange(logits.shape[1], device=logits.device)
    others = (places != own[:, None]) & (places != partner[:, None])  # 2B 2G
    luck = torch.cat(stream.uniform(2, logits.shape[1]).unbind(1)).masked_fill(~others, -1.0)  # 2B 2G
    taken = luck.topk(min(negatives, logits.shape[1] - 2), dim=1).indices
    kept = torch.cat([taken, partner[:, None]], dim=1)  # 2B K+1, the partner last
    chosen = logits.gather(1, kept) / temperature
    return F.cross_entropy(chosen, torch.full_like(own, chosen.shape[1] - 1))


@torch.no_grad()
@full_precision
def contrastive_accuracy(one: Tensor, two: Tensor, world: World) -> Tensor:
    """Scalar: share of this worker's 2B views whose partner is the most similar of all views, by cosine."""
    logits, own, partner = _view_scores(one, two, world, True)
    return (logits.scatter(1, own[:, None], float("-inf")).argmax(1) == partner).float().mean()


def _view_scores(one: Tensor, two: Tensor, world: World, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities [2B, 2G] of this worker's views with all, and int64 [2B]: where each view and its partner stand in a row."""
    if normalise:
        one, two = F.normalize(one, dim=1), F.normalize(two, dim=1)
    everyone = torch.cat([world.gather(one), world.gather(two)])  # 2G D
    g = len(everyone) // 2
    mine = torch.arange(len(one), device=one.device) + world.rank * len(one)
    return torch.cat([one, two]) @ everyone.T, torch.cat([mine, mine + g]), torch.cat([mine + g, mine])


@torch.no_grad()
@full_precision
def key_accuracy(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Scalar: share of queries [B, D] that are more similar to their own key [B, D] than to each of the negatives [K, D]."""
    return ((query * positive).sum(1) > (query @ negatives.T).amax(1)).float().mean()


@full_precision
def in_batch_info_nce(query: Tensor, key: Tensor, temperature: float | Tensor, world: World) -> Tensor:
    """Cross-entropy of telling each query's key from the keys of the global batch (van den Oord 2018, arXiv:1807.03748).

    Args:
        query, key: float [B, D], row by row a pair.
        temperature: divides the similarities.
        world: the workers.
    Returns:
        scalar, the mean over this worker's rows.
    """
    target = torch.arange(len(query), device=query.device) + world.rank * len(query)
    return F.cross_entropy(query @ world.gather(key).T / temperature, target)


def sample_negative_indices(images: int, count: int, stream: RandomStream) -> Tensor:
    """int64 [count]: images drawn uniformly, one sample for the global batch, the same on every worker."""
    return torch.randint(images, (count,), generator=stream.generator, device=stream.device)


@torch.no_grad()
def initialise_bank(bank: MemoryBank, index: Tensor, z: Tensor, world: World) -> None:
    """Rows of images seen for the first time become their present embeddings: a random row would be a target without meaning.

    For the arguments see ``update_bank``; comes before the loss reads the bank.
    """
    bank.initialise(*_once(index, z, world))


@torch.no_grad()
def update_bank(bank: MemoryBank, index: Tensor, z: Tensor, momentum: float, world: World) -> None:
    """Moves the rows ``index`` [B] of the bank towards the embeddings ``z`` [B, D] of all workers."""
    bank.update(*_once(index, z, world), momentum)


def _once(index: Tensor, z: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Index [G] and embeddings [G, D] of the global batch; an image that stands in it twice takes its first embedding, so that
    the order of writing does not matter."""
    index, z = world.gather(index), world.gather(z.detach())
    first = (index[:, None] == index).int().argmax(1)
    return index, z[first]
