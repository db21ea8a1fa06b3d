"""Copies: images that are the same pixel for pixel, or nearly (encoded again, a little brighter or darker, mirrored).

By small thumbnails and no encoder. How near is too near depends on the images: handwritten digits are much alike in any case.
So the limit is a share of the distance to the tenth nearest image, in the median over all. Measured on 3,000 images of
CIFAR-10, 3,000 of MNIST and 1,797 digits of scikit-learn, with 100 copies of each kind: JPEG at quality 75 and mirrored 100%
found, a fifth darker or brighter 89 to 100%, JPEG at quality 30 91, 100 and 31%; pairs called copies that nobody made 1, 5
and 0. Copies that were cropped, turned or shifted are not found. To ask near embeddings as well, of EfficientNet-Lite0, took
none of the pairs away.

N images of all parts, U distinct ones, T numbers of a thumbnail, k neighbours.
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
from methods.parts.neighbours import ROWS, principal
from orchestrator.care.looks import COMPONENTS, Looks
from orchestrator.care.records import Finding

NEIGHBOURS = 10
"""Distinct images that each is compared with."""

SHARE = 0.05
"""Of the distance, 1 - correlation of thumbnails, to the tenth nearest image, in the median: as near as that are copies."""


@dataclass(frozen=True, eq=False)
class Copies:
    """The distinct images, and which of them are near copies of each other.

    Attributes:
        node: int64 [N], the distinct image that each image shows, 0 .. U - 1.
        first: int64 [U], the first image that shows it.
        pairs: int64 [m, 2], nodes that are near copies of each other.
        strength: float32 [m], correlation of their thumbnails.
    """

    node: IntArray
    first: IntArray
    pairs: IntArray
    strength: NDArray[np.float32]


def copies(looks: Looks) -> Copies:
    """Compares every distinct image with all others, a tile at a time; memory grows with N, time with N squared."""
    number: dict[bytes, int] = {}
    node = np.array([number.setdefault(digest, len(number)) for digest in looks.digest], dtype=np.int64)
    first = np.unique(node, return_index=True)[1].astype(np.int64)
    if len(first) < 2:
        return Copies(node, first, np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.float32))
    rows = torch.from_numpy(first)
    plain, mirrored = looks.thumbnail[rows], looks.mirrored(rows)
    index = _nearest(plain, mirrored, NEIGHBOURS)
    # Of the whole thumbnails; the search saw their principal components.
    similar = torch.stack([_products(plain, mirrored, other) for other in index.T], 1)  # U k
    limit = SHARE * float((1 - similar.amin(1)).median())
    one, place = torch.nonzero(similar >= 1 - limit, as_tuple=True)
    other = index[one, place]
    both = torch.stack([torch.minimum(one, other), torch.maximum(one, other)], 1)
    pairs, which = torch.unique(both, dim=0, return_inverse=True)
    strength = torch.zeros(len(pairs)).scatter_reduce(0, which, similar[one, place], "amax").clamp_max(1)
    return Copies(node, first, pairs.numpy(), strength.numpy())


def _nearest(plain: Tensor, mirrored: Tensor, k: int) -> Tensor:
    """int64 [U, k]: for each thumbnail of plain [U, T] the others to which it, or its mirror image, is nearest."""
    x, y = principal(torch.cat([plain, mirrored]), COMPONENTS).split(len(plain))
    k = min(k, len(x) - 1)
    index = torch.empty(len(x), k, dtype=torch.int64)
    for start in range(0, len(x), ROWS):
        part = torch.maximum(x[start : start + ROWS] @ x.T, y[start : start + ROWS] @ x.T)  # rows U
        own = torch.arange(len(part))
        part[own, own + start] = -torch.inf
        index[start : start + ROWS] = part.topk(k, dim=1).indices
    return index


def _products(plain: Tensor, mirrored: Tensor, other: Tensor) -> Tensor:
    """float32 [U]: correlation of each thumbnail, or of its mirror image, with that at ``other``, int64 [U]."""
    chunks = zip(plain.split(CHUNK), mirrored.split(CHUNK), other.split(CHUNK), strict=True)
    return torch.cat([torch.maximum((a * plain[j]).sum(1), (b * plain[j]).sum(1)) for a, b, j in chunks])


def near_duplicates(looks: Looks, near: Copies) -> tuple[Finding, ...]:
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


def leaks(looks: Looks, near: Copies) -> tuple[Finding, ...]:
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
