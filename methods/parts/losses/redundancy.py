"""Losses on the moments of embeddings over the global batch: no negatives, no teacher.

B rows on this worker, G in the global batch, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.losses.contrastive import ALONE
from methods.parts.losses.precision import full_precision
from methods.world import World


@full_precision
def barlow(z1: Tensor, z2: Tensor, lam: float, world: World = ALONE, eps: float = 1e-5) -> Tensor:
    """Cross-correlation to identity (Zbontar et al. 2021, arXiv:2103.03230, equation 1).

    sum_i (1 - C_ii)^2 + lam * sum_{i != j} C_ij^2, with C the correlation of the two views' units over the global batch.

    Args:
        z1, z2: float [B, D], two views of the same images.
        lam: weight of the off-diagonal part.
        world: the workers.
        eps: added to the variances.
    Returns:
        scalar, the same on every worker.
    """
    one, two = (_standardised(z, world, eps) for z in (z1, z2))
    c = world.sum(one.T @ two) / (len(z1) * world.size)  # D D
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + lam * (c - diagonal.diag()).square().sum()


@full_precision
def vicreg(
    z1: Tensor,
    z2: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    world: World = ALONE,
) -> Tensor:
    """Variance, invariance, covariance (Bardes, Ponce & LeCun 2021, arXiv:2105.04906, equation 6).

    invariance * s + variance * (v(z1) + v(z2)) + covariance * (c(z1) + c(z2)); terms as in ``vicreg_terms``.

    Returns:
        scalar; the mean over workers is the loss of the global batch.
    """
    s, v, c = vicreg_terms(z1, z2, world)
    return invariance * s + variance * v + covariance * c


@full_precision
def vicreg_terms(z1: Tensor, z2: Tensor, world: World = ALONE, eps: float = 1e-4) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms, as in the paper's algorithm 1 (its text sums s over D; the algorithm and the authors' code average).

    Args:
        z1, z2: float [B, D], two views of the same images.
        world: the workers; variances and covariances are those of the global batch, with G - 1 in the denominator.
        eps: added to the variances.
    Returns:
        s = mean (z1 - z2)^2; v = sum over views of mean_j max(0, 1 - sqrt(var_j + eps));
        c = sum over views of sum_{i != j} cov_ij^2 / D.
    """
    s = F.mse_loss(z1, z2)
    v, c = z1.new_zeros(()), z1.new_zeros(())
    for z in (z1, z2):
        cov = _covariance(z, world)  # D D
        var = cov.diagonal()
        v = v + F.relu(1 - (var + eps).sqrt()).mean()
        c = c + (cov - var.diag()).square().sum() / z.shape[1]
    return s, v, c


def _centred(z: Tensor, world: World) -> Tensor:
    return z - world.sum(z.sum(0)) / (len(z) * world.size)


def _standardised(z: Tensor, world: World, eps: float) -> Tensor:
    x = _centred(z, world)
    var = world.sum(x.square().sum(0)) / (len(z) * world.size)
    return x * torch.rsqrt(var + eps)


def _covariance(z: Tensor, world: World) -> Tensor:
    x = _centred(z, world)
    return world.sum(x.T @ x) / (len(z) * world.size - 1)
