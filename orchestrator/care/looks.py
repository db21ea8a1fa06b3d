"""How images are compared: pixel by pixel, by small thumbnails, and by an encoder's embeddings.

n images of a part, N images of all parts, D embedding, C channels, T = 256 C numbers of a thumbnail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from methods.data.records import Images, ImageSet, IntArray, LabelledSubset
from methods.features import CHUNK
from methods.parts.neighbours import principal
from orchestrator.care.records import Place

SIDE = 16
"""Pixels a side of a thumbnail."""

COMPONENTS = 128
"""Principal components along which embeddings are compared: of 1,280 in a tenth of the time."""

FLAT = 2 / 255
"""Standard deviation of a thumbnail, whites being 1, below which an image shows nothing."""


@dataclass(frozen=True, eq=False)
class Part:
    """The training or the test images.

    Attributes:
        name: ``train`` or ``test``.
        images: the images.
        index: int64 [n], which of them belong to the part.
        label: int64 [n], -1 where unlabelled.
        classes: names; ``label`` counts into them.
        names: of the files of all ``images``, or ().
        embedding: float [N, V, D] of all ``images``, V views of each; None where no encoder has seen them.
    """

    name: str
    images: Images
    index: IntArray
    label: IntArray
    classes: Sequence[str]
    names: Sequence[str] = ()
    embedding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def place(self, row: int) -> Place:
        position, k = int(self.index[row]), int(self.label[row])
        file, label = self.names[position] if self.names else str(position), self.classes[k] if k >= 0 else ""
        return Place(self.name, position, file, label)

    def embedded(self) -> Tensor:
        """float32 [n, D], the mean over views."""
        assert self.embedding is not None
        rows = torch.from_numpy(self.index).split(CHUNK)
        return torch.cat([self.embedding[each].float().mean(1) for each in rows])


def part_of(name: str, data: ImageSet, embedding: Tensor | None = None) -> Part:
    """All images of a set."""
    return Part(name, data.images, np.arange(len(data)), data.label, data.classes, data.names, embedding)


def part_of_test(test: LabelledSubset, embedding: Tensor | None = None) -> Part:
    """The images that a test asks about."""
    return Part("test", test.data.images, test.index, test.label, test.data.classes, test.data.names, embedding)


@dataclass(frozen=True, eq=False)
class Looks:
    """What the images of all parts look like, the parts one after the other.

    Attributes:
        parts: the images.
        digest: of every image's pixels.
        thumbnail: float32 [N, T], centred and of unit length, so that products are correlations.
        contrast: float32 [N], standard deviation over a thumbnail's pixels, of the channel where that is largest.
        features: float32 [N, d], unit length, so that products are cosines: of embeddings, centred, else the thumbnails.
        embedded: whether features are of embeddings.
    """

    parts: tuple[Part, ...]
    digest: tuple[bytes, ...]
    thumbnail: Tensor
    contrast: Tensor
    features: Tensor
    embedded: bool

    def place(self, row: int) -> Place:
        for part in self.parts:
            if row < len(part):
                return part.place(row)
            row -= len(part)
        raise IndexError(row)

    def part(self) -> NDArray[np.int64]:
        """int64 [N]: the number of each image's part."""
        return np.repeat(np.arange(len(self.parts)), [len(part) for part in self.parts])

    def mirrored(self, rows: Tensor) -> Tensor:
        """float32 [n, T]: thumbnails of the mirror images."""
        return self.thumbnail[rows].unflatten(1, (-1, SIDE, SIDE)).flip(3).flatten(1)


def look(parts: Iterable[Part]) -> Looks:
    """Looks at every image of the parts once."""
    parts = tuple(part for part in parts if len(part))
    digest: list[bytes] = []
    small: list[Tensor] = []
    contrast: list[Tensor] = []
    for part in parts:
        for rows in torch.from_numpy(part.index).split(CHUNK // 8):
            x = part.images.take(rows)  # n C H W
            digest += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x.contiguous().numpy()]
            thumbnails = F.adaptive_avg_pool2d(x.float().div_(255), SIDE).flatten(2)  # n C 256
            contrast.append(thumbnails.std(2, correction=0).amax(1))
            small.append(thumbnails.flatten(1))
    centred = torch.cat(small)
    centred -= centred.mean(1, keepdim=True)
    thumbnail = F.normalize(centred, dim=1)
    embedded = all(part.embedding is not None for part in parts)
    features = _features(torch.cat([part.embedded() for part in parts])) if embedded else thumbnail
    return Looks(parts, tuple(digest), thumbnail, torch.cat(contrast), features, embedded)


def _features(x: Tensor) -> Tensor:
    return F.normalize(principal(x - x.mean(0), COMPONENTS), dim=1)
