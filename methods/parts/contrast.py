"""Softmax contrasts over the global batch: what the methods with two views share.

B rows on this worker, G in the global batch, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Draws
from methods.contracts import TrainingError
from methods.parts.queue import MemoryBank
from methods.world import World


def normalised(z: Tensor) -> Tensor:
    """Rows of unit length, in float32."""
    return F.normalize(z.float(), dim=1)


def global_rows(rows: int, world: World, device: torch.device) -> Tensor:
    """int64 [B]: the positions of this worker's rows in the global batch."""
    return torch.arange(rows, device=device) + world.rank * rows


def nt_xent(
    one: Tensor,
    two: Tensor,
    temperature: float,
    world: World,
    normalise: bool = True,
    negatives: int = 0,
    draws: Draws | None = None,
) -> tuple[Tensor, Tensor]:
    """The normalised temperature-scaled cross-entropy of SimCLR (Chen 2020, arXiv:2002.05709, equation 1).

    Args:
        one, two: float [B, D], two views of the same images in the same order.
        temperature: divides the similarities.
        world: the workers; every view is compared with the views of the global batch.
        normalise: compare by cosine, otherwise by dot product.
        negatives: how many of the 2G - 2 views of other images enter a view's denominator, drawn at random; 0 for all.
        draws: needed where ``negatives`` is not 0.
    Returns:
        the mean over this worker's 2B views, and the share of views whose partner is the most similar.
    Raises:
        TrainingError: a global batch of one image has no negatives.
    """
    if normalise:
        one, two = normalised(one), normalised(two)
    b = len(one)
    everyone = torch.cat([world.gather(one.float()), world.gather(two.float())])  # 2G D
    g = len(everyone) // 2
    if g < 2:
        raise TrainingError("a contrastive batch needs at least 2 images, got 1; raise batch_size")
    mine = global_rows(b, world, one.device)
    own = torch.cat([mine, mine + g])  # 2B, where each view stands among the 2G
    partner = torch.cat([mine + g, mine])
    logits = torch.cat([one, two]).float() @ everyone.T / temperature  # 2B 2G
    excluded = F.one_hot(own, 2 * g).bool()
    if negatives and negatives < 2 * g - 2:
        assert draws is not None, "negatives are drawn at random"
        scores = torch.cat(draws.uniform(2, 2 * g).unbind(1))  # 2B 2G
        never = excluded | F.one_hot(partner, 2 * g).bool()
        taken = scores.masked_fill(never, -1.0).topk(negatives, dim=1).indices
        excluded = ~(torch.zeros_like(never).scatter(1, taken, True) | F.one_hot(partner, 2 * g).bool())
    logits = logits.masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, partner), (logits.detach().argmax(1) == partner).float().mean()


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of telling each query's key from negatives shared by all queries (He 2020, arXiv:1911.05722, equation 1).

    Args:
        query, positive: float [B, D].
        negatives: float [K, D].
        temperature: divides the similarities.
    Returns:
        the mean over rows, and the share of queries whose own key is the most similar.
    """
    own = (query.float() * positive.float()).sum(1, keepdim=True)  # B 1
    logits = torch.cat([own, query.float() @ negatives.float().T], dim=1) / temperature  # B 1+K
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target), (logits.detach().argmax(1) == 0).float().mean()


def matching(query: Tensor, key: Tensor, temperature: float | Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Cross-entropy of telling each query's key from the keys of the whole batch, one direction (van den Oord 2018).

    Args:
        query, key: float [B, D], row by row a pair.
        temperature: divides the similarities.
        world: the workers.
    Returns:
        the mean over rows, and the share of queries whose own key is the most similar.
    """
    keys = world.gather(key.float())  # G D
    target = global_rows(len(query), world, query.device)
    logits = query.float() @ keys.T / temperature  # B G
    return F.cross_entropy(logits, target), (logits.detach().argmax(1) == target).float().mean()


def shared_noise(images: int, count: int, draws: Draws) -> Tensor:
    """int64 [count]: images drawn uniformly, one sample for the global batch, the same on every worker."""
    return torch.randint(images, (count,), generator=draws.generator, device=draws.device)


@torch.no_grad()
def remember(bank: MemoryBank, index: Tensor, z: Tensor, momentum: float, world: World) -> None:
    """Moves the rows ``index`` [B] of the bank towards the embeddings ``z`` [B, D] of all workers.

    An image that stands twice in the global batch takes its first embedding, so that the order of writing does not matter.
    """
    index, z = world.gather(index), world.gather(z)
    first = (index[:, None] == index).int().argmax(1)
    bank.update(index, z[first], momentum)
