"""Copies: images that are the same pixel for pixel, or nearly (encoded again, resized, brightened, mirrored).

Embeddings propose and thumbnails confirm: images of one kind have near embeddings, and images of one composition near
thumbnails; a copy has both.

N images of all parts, U distinct ones, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from methods.data.records import IntArray
from methods.features import CHUNK
from methods.parts.neighbours import nearest
from orchestrator.care.looks import Looks
from orchestrator.care.records import Finding

NEIGHBOURS = 10
"""Distinct images that each is compared with."""

COSINE = 0.8
"""Of the embeddings, centred and along their principal components, from which two images may be copies."""

DISTANCE, DISTANCE_ALONE = 0.05, 0.01
"""1 - correlation of the thumbnails, or of one with the other mirrored, up to which two images with near embeddings are copies;
and where no encoder has seen them."""

SHARE = 0.1
"""Copies are also no farther than this share of what an image is from its tenth neighbour in the median: of handwritten digits
many are within ``DISTANCE`` of each other."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The distinct images and what is near them.

    Attributes:
        node: int64 [N], the distinct image that each image shows, 0 .. U - 1.
        first: int64 [U], the first image that shows it.
        similarity: float32 [U, k] of the nearest other distinct images, nearest first.
        pairs: int64 [m, 2], nodes that are near copies of each other.
        strength: float32 [m], their similarity.
    """

    node: IntArray
    first: IntArray
    similarity: NDArray[np.float32]
    pairs: IntArray
    strength: NDArray[np.float32]


def neighbours(looks: Looks) -> Neighbours:
    """Compares every distinct image with all others, a tile at a time; memory grows with N, time with N squared."""
    number: dict[bytes, int] = {}
    node = np.array([number.setdefault(digest, len(number)) for digest in looks.digest], dtype=np.int64)
    first = np.unique(node, return_index=True)[1].astype(np.int64)
    rows = torch.from_numpy(first)
    if len(first) < 2:
        empty = np.zeros((len(first), 0), dtype=np.float32)
        return Neighbours(node, first, empty, np.zeros((0, 2), dtype=np.int64), empty.reshape(-1))
    similarity, index = nearest(looks.features[rows], NEIGHBOURS)
    typical = float((1 - _products(looks.thumbnail, rows, rows[index[:, -1]])).median())
    limit = min(DISTANCE if looks.embedded else DISTANCE_ALONE, SHARE * typical)
    one, place = torch.nonzero(similarity >= (COSINE if looks.embedded else 1 - limit), as_tuple=True)
    other = index[one, place]
    one, other = torch.minimum(one, other), torch.maximum(one, other)
    pairs = torch.unique(torch.stack([one, other], 1), dim=0)
    a, b = rows[pairs[:, 0]], rows[pairs[:, 1]]
    strength = torch.maximum(_products(looks.thumbnail, a, b), (looks.thumbnail[a] * looks.mirrored(b)).sum(1))
    kept = strength >= 1 - limit
    return Neighbours(node, first, similarity.numpy(), pairs[kept].numpy(), strength[kept].clamp_max(1).numpy())


def _products(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """float32 [m]: inner products of rows a and b, int64 [m], of x [N, d]."""
    return torch.cat([(x[i] * x[j]).sum(1) for i, j in zip(a.split(CHUNK), b.split(CHUNK), strict=True)])


def near_duplicates(looks: Looks, near: Neighbours) -> tuple[Finding, ...]:
    """Groups of images of one part that are copies of each other, the most alike first."""
    part, size = looks.part(), len(near.first)
    found = []
    for number in range(len(looks.parts)):
        rows = np.flatnonzero(part == number)
        there = np.zeros(size, dtype=bool)
        there[near.node[rows]] = True
        inside = there[near.pairs].all(1)
        pairs, strength = near.pairs[inside], near.strength[inside]
        edges = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
        group = connected_components(edges, directed=False)[1]
        weakest = np.ones(size)
        np.minimum.at(weakest, group[pairs[:, 0]], strength)
        by_group = rows[np.argsort(group[near.node[rows]], kind="stable")]
        for members in np.split(by_group, np.flatnonzero(np.diff(group[near.node[by_group]])) + 1):
            if len(members) > 1:
                exact = len(np.unique(near.node[members])) == 1
                score = float(weakest[group[near.node[members[0]]]])
                found.append(Finding(tuple(looks.place(row) for row in members), score, "exact" if exact else "near"))
    return tuple(sorted(found, key=lambda finding: -finding.score))


def leaks(looks: Looks, near: Neighbours) -> tuple[Finding, ...]:
    """Test images with a copy among the training images, each with the one that resembles it most; exact copies first."""
    names = [part.name for part in looks.parts]
    if names != ["train", "test"]:
        return ()
    tests = len(looks.parts[0])
    shown = np.full(len(near.first), -1, dtype=np.int64)
    # Backwards, so that the first training image that shows it stands there.
    shown[near.node[:tests][::-1]] = np.arange(tests)[::-1]
    best: dict[int, tuple[float, int]] = {}
    for (one, other), strength in zip(near.pairs.tolist(), near.strength.tolist(), strict=True):
        for node, copy in ((one, other), (other, one)):
            if shown[copy] >= 0 and strength > best.get(node, (0.0, 0))[0]:
                best[node] = strength, int(shown[copy])
    found = []
    for row in range(tests, len(near.node)):
        node = int(near.node[row])
        if shown[node] >= 0:
            found.append(Finding((looks.place(row), looks.place(int(shown[node]))), 1.0, "exact"))
        elif node in best:
            strength, train = best[node]
            found.append(Finding((looks.place(row), looks.place(train)), strength, "near"))
    return tuple(sorted(found, key=lambda finding: (finding.said != "exact", -finding.score)))
