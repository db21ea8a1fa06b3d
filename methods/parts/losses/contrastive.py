"""Softmax contrasts: one partner to be found among many others.

B rows on this worker, G in the global batch, D embedding, K negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.losses.precision import full_precision
from methods.world import World
from search_spaces.domains import UserError

ALONE = World()


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float, world: World = ALONE, normalise: bool = True) -> Tensor:
    """NT-Xent over 2G - 1 (Chen et al. 2020, arXiv:2002.05709, equation 1).

    l(i, j) = -log exp(sim(z_i, z_j) / t) / sum_{k != i} exp(sim(z_i, z_k) / t), averaged over the 2B views of this worker.

    Args:
        z1, z2: float [B, D], two views of the same images in the same order.
        temperature: t.
        world: the workers; every view is compared with the views of the global batch.
        normalise: sim is the cosine, otherwise the dot product.
    Returns:
        scalar; the mean over workers is the loss of the global batch.
    Raises:
        UserError: fewer than two images in the global batch: there is nothing to contrast with.
    """
    if normalise:
        z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    b = len(z1)
    if b * world.size < 2:
        raise UserError(f"a contrastive batch needs at least 2 images, got {b}; raise batch_size")
    every = world.gather(torch.stack([z1, z2], dim=1))  # G 2 D
    every = torch.cat([every[:, 0], every[:, 1]])  # 2G D
    g = len(every) // 2
    mine = torch.arange(b, device=z1.device) + world.rank * b
    self_, partner = torch.cat([mine, mine + g]), torch.cat([mine + g, mine])
    logits = torch.cat([z1, z2]) @ every.T / temperature  # 2B 2G
    logits = logits.scatter(1, self_[:, None], float("-inf"))
    return F.cross_entropy(logits, partner)


@full_precision
def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float, normalise: bool = True) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748; in MoCo's form: He et al. 2019, arXiv:1911.05722, equation 1).

    -log exp(q k+ / t) / (exp(q k+ / t) + sum_k exp(q k / t)), averaged over rows.

    Args:
        query, positive: float [B, D].
        negatives: float [K, D] shared by all rows, or [B, K, D].
        temperature: t.
        normalise: brings all three to unit length.
    Returns:
        scalar.
    """
    if normalise:
        query, positive, negatives = (F.normalize(z, dim=-1) for z in (query, positive, negatives))
    own = (query * positive).sum(1, keepdim=True)  # B 1
    logits = torch.cat([own, _scores(query, negatives)], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


@full_precision
def nonparametric_softmax(z: Tensor, index: Tensor, bank: Tensor, temperature: float, normalise: bool = True) -> Tensor:
    """Every image its own class (Wu et al. 2018, arXiv:1805.01978, equation 2).

    -log exp(v_i z / t) / sum_j exp(v_j z / t), averaged over rows.

    Args:
        z: float [B, D].
        index: int64 [B], the images' places in the bank.
        bank: float [N, D], one vector per image.
        temperature: t.
        normalise: brings z to unit length; the bank's vectors are taken as they are.
    Returns:
        scalar.
    """
    z = F.normalize(z, dim=1) if normalise else z
    return F.cross_entropy(z @ bank.T / temperature, index)


@full_precision
def nce(query: Tensor, positive: Tensor, noise: Tensor, temperature: float, images: int, log_constant: Tensor) -> Tensor:
    """Noise-contrastive estimation with a constant Z (Gutmann & Hyvarinen 2010; Wu et al. 2018, arXiv:1805.01978, equation 7).

    With P(v) = exp(v q / t) / Z, P_n = 1 / N and h(v) = P(v) / (P(v) + m P_n):
    -log h(v+) - sum_m log(1 - h(v_m)), averaged over rows.

    Args:
        query, positive: float [B, D], of unit length.
        noise: float [m, D] shared by all rows, or [B, m, D]; of unit length, drawn uniformly from the images.
        temperature: t.
        images: N.
        log_constant: log Z, scalar; see ``nce_log_constant``.
    Returns:
        scalar.
    """
    m = noise.shape[-2]
    shift = log_constant + torch.log(torch.tensor(m / images, dtype=query.dtype, device=query.device))
    own = (query * positive).sum(1) / temperature - shift  # B, log odds of being data
    others = _scores(query, noise) / temperature - shift  # B m
    return -(F.logsigmoid(own) + F.logsigmoid(-others).sum(1)).mean()


@full_precision
def nce_log_constant(query: Tensor, noise: Tensor, temperature: float, images: int, world: World = ALONE) -> Tensor:
    """log Z = log(N * mean exp(v q / t)), estimated once from the first batch (Wu et al. 2018, equation 8). No gradient.

    Args:
        query: float [B, D].
        noise: float [m, D] or [B, m, D].
        temperature: t.
        images: N.
        world: the mean is over the global batch.
    """
    with torch.no_grad():
        scores = world.gather(_scores(query, noise)) / temperature  # G m
        return scores.flatten().logsumexp(0) + torch.log(torch.tensor(images / scores.numel(), device=query.device))


def _scores(query: Tensor, others: Tensor) -> Tensor:
    """[B, K]: dot products of queries [B, D] with others shared by all rows [K, D], or with each row's own [B, K, D]."""
    return query @ others.T if others.dim() == 2 else torch.einsum("bd,bkd->bk", query, others)
