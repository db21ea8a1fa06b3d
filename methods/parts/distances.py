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


def class_means(support: Tensor, label: Tensor, ways: int) -> Tensor:
    """float32 [T, N, D]: mean of the support embeddings [T, S, D] of each class; label int64 [T, S] in 0 .. N - 1."""
    with torch.autocast(support.device.type, enabled=False):
        member = one_hot(label, ways).to(torch.float32)  # [T, S, N]
        return member.transpose(1, 2) @ support.float() / member.sum(dim=1).unsqueeze(-1)
