"""Whether two sets of images are alike: a classifier two-sample test on their embeddings.

Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests", arXiv:1610.06545, with a ridge regression, whose answers for
left-out images are known without fitting anew, and with permutations in place of the asymptotic distribution: the images are
divided anew at random, and the share of divisions that are told apart as well is the p-value.

n images of both sets, d features, B divisions.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from methods.batch import seed_of
from orchestrator.care.records import Likeness

MOST = 1000
"""Images of a set that are compared, drawn where there are more."""

FEWEST = 20
"""Images of a set below which nothing can be said."""

DIVISIONS = 500

RIDGE = 0.1
"""Penalty, as a share of n times the mean variance of a feature."""


def likeness(one: str, x: Tensor, other: str, y: Tensor, seed: int) -> Likeness | None:
    """Compares x [m, d] with y [n, d]; None where one has fewer than 20 images, or all images look the same.

    Args:
        one, other: what they are, in words.
        seed: of the draws.
    """
    if min(len(x), len(y)) < FEWEST:
        return None
    random = np.random.default_rng(seed_of(seed, "likeness", one, other))
    x, y = (z[torch.from_numpy(np.sort(random.permutation(len(z))[:MOST]))] for z in (x, y))
    z = torch.cat([x, y]).double()
    z = z - z.mean(0)
    if not z.any():
        return None
    label = np.arange(len(z)) < len(x)
    columns = np.stack([label, *(random.permutation(label) for _ in range(DIVISIONS))], axis=1)  # n 1+B
    auc = aucs(_left_out(z, torch.from_numpy(columns).double()).numpy(), columns)
    p = (1 + int((auc[1:] >= auc[0]).sum())) / (1 + DIVISIONS)
    return Likeness(one, other, len(x), len(y), float(auc[0]), p)


def _left_out(z: Tensor, target: Tensor) -> Tensor:
    """float64 [n, B]: the ridge regression's answer for each row of z [n, d], fitted on the other rows to target [n, B]."""
    target = target - target.mean(0)
    penalty = RIDGE * z.square().sum() / z.shape[1]
    inner = z.T @ z + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    hat = z @ torch.linalg.solve(inner, z.T)  # n n
    own = hat.diagonal()[:, None].clamp_max(1 - 1e-9)
    return (hat @ target - own * target) / (1 - own)


def aucs(score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """float64 [B]: area under the ROC curve of each column of score [n, B] and bool [n, B]."""
    rank = rankdata(score, axis=0)
    n = positive.sum(0)
    u = (rank * positive).sum(0) - n * (n + 1) / 2
    return np.asarray(u / (n * (len(score) - n)))
