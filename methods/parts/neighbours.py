"""The graph of nearest neighbours, and labels that spread along it.

N points, D features, k neighbours, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024
"""Points that are compared with all others at a time."""


def nearest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each point's k nearest others by inner product, nearest first: float32 [N, k] products and int64 [N, k] positions.

    Args:
        x: float32 [N, D], of unit length where cosines are meant.
        k: at most N - 1.
    """
    k = min(k, len(x) - 1)
    value = torch.empty(len(x), k, device=x.device)
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS] @ x.T  # rows N
        own = torch.arange(len(part), device=x.device)
        part[own, own + start] = -torch.inf
        value[start : start + ROWS], index[start : start + ROWS] = part.topk(k, dim=1)
    return value, index


def principal(x: Tensor, dim: int) -> Tensor:
    """float32 [N, dim]: centred rows x [N, D] along their first principal components; x itself where D is no larger."""
    if x.shape[1] <= dim:
        return x
    _, axes = torch.linalg.eigh(x.T @ x)
    return x @ axes[:, -dim:]


def diffusion(value: Tensor, index: Tensor, gamma: float) -> Tensor:
    """S = D^-1/2 W D^-1/2, sparse [N, N]; D are the row sums of W (Zhou 2004).

    W_ij = a_ij + a_ji, where a_ij is the cosine, cut at 0, to the power ``gamma`` if j is among the neighbours of i, else 0
    (Iscen et al. 2019, arXiv:1904.04717).
    """
    n, k = index.shape
    rows = torch.arange(n, device=index.device).repeat_interleave(k)
    weight = value.clamp_min(0).pow(gamma).flatten()
    both = torch.stack([torch.cat([rows, index.flatten()]), torch.cat([index.flatten(), rows])])
    w = torch.sparse_coo_tensor(both, torch.cat([weight, weight]), (n, n), check_invariants=False).coalesce()
    degree = torch.zeros(n, device=value.device).index_add_(0, w.indices()[0], w.values()).clamp_min(1e-12)
    i, j = w.indices()
    values = w.values() / (degree[i] * degree[j]).sqrt()
    return torch.sparse_coo_tensor(w.indices(), values, (n, n), is_coalesced=True, check_invariants=False)


def spread(s: Tensor, start: Tensor, alpha: float, steps: int = 50, tol: float = 1e-5) -> Tensor:
    """float32 [N, K]: (1 - alpha) (I - alpha S)^-1 Y by conjugate gradients, all columns at once (Zhou 2004).

    Args:
        s: sparse [N, N], symmetric, eigenvalues at most 1.
        start: Y, float32 [N, K].
        alpha: below 1.
        steps: at the most.
        tol: norm of the residual over that of Y, of every column, at which it ends.
    """
    b = (1 - alpha) * start
    f = torch.zeros_like(b)
    r, p = b.clone(), b.clone()
    rr = (r * r).sum(0)
    end = rr * tol**2
    for _ in range(steps):
        if bool((rr <= end).all()):
            break
        ap = p - alpha * (s @ p)
        size = rr / (p * ap).sum(0).clamp_min(1e-30)
        f, r = f + size * p, r - size * ap
        new = (r * r).sum(0)
        p = r + (new / rr.clamp_min(1e-30)) * p
        rr = new
    return f
