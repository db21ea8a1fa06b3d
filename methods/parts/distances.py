"""Similarities between embeddings, as logits. Always in float32: squared distances of large embeddings overflow half precision.

Shapes: T tasks, Q queries, M keys (support images or prototypes), D embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Distance = Literal["euclidean", "cosine"]
DISTANCES: tuple[Distance, ...] = ("euclidean", "cosine")


def squared_distances(query: Tensor, keys: Tensor) -> Tensor:
    """float32 [T, Q, M]: |q - k|^2 for query [T, Q, D] and keys [T, M, D]."""
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.float(), keys.float()
        centre = k.mean(dim=1, keepdim=True)  # Distances do not change, and rounding does not grow with the common part.
        q, k = q - centre, k - centre
        lengths = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(1)
        return torch.baddbmm(lengths, q, k.transpose(1, 2), alpha=-2)


def weighted_l1(query: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """float32 [T, Q, M]: sum_d weight_d |q_d - k_d| for query [T, Q, D], keys [T, M, D] and weight [D] of any sign."""
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.float(), keys.float()
        plus, minus = weight.clamp_min(0), (-weight).clamp_min(0)
        # Two weighted city-block distances, so that no tensor [T, Q, M, D] is ever made.
        return torch.cdist(q * plus, k * plus, p=1.0) - torch.cdist(q * minus, k * minus, p=1.0)


def cosines(query: Tensor, keys: Tensor) -> Tensor:
    """float32 [T, Q, M]: cosine of the angle between query [T, Q, D] and keys [T, M, D]."""
    with torch.autocast(query.device.type, enabled=False):
        return normalize(query.float(), dim=-1) @ normalize(keys.float(), dim=-1).transpose(1, 2)


def similarity_logits(query: Tensor, keys: Tensor, distance: str, temperature: float) -> Tensor:
    """float32 [T, Q, M]: -|q - k|^2 / temperature (euclidean) or cos(q, k) / temperature (cosine)."""
    assert distance in DISTANCES, distance
    if distance == "euclidean":
        return -squared_distances(query, keys) / temperature
    return cosines(query, keys) / temperature


def class_logsumexp(logits: Tensor, label: Tensor, ways: int) -> Tensor:
    """float32 [T, Q, N]: log of the sum of exp(logits [T, Q, S]) over the members of each class; label int64 [T, S]."""
    logits = logits.float()
    index = label.unsqueeze(1).expand_as(logits)
    none = logits.detach().new_full((*logits.shape[:2], ways), float("-inf"))
    top = none.scatter_reduce(2, index, logits.detach(), "amax")
    total = torch.zeros_like(none).scatter_add(2, index, (logits - top.gather(2, index)).exp())
    return total.log() + top


def class_means(support: Tensor, label: Tensor, ways: int) -> Tensor:
    """float32 [T, N, D]: mean of the support embeddings [T, S, D] of each class; label int64 [T, S] in 0 .. N - 1."""
    with torch.autocast(support.device.type, enabled=False):
        member = one_hot(label, ways).to(torch.float32)  # [T, S, N]
        return member.transpose(1, 2) @ support.float() / member.sum(dim=1).unsqueeze(-1)
