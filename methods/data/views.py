"""Images seen through an index: parts, joins and rotations that copy nothing until they are taken."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.data.records import ArrayImages, Images, ImageSet, IntArray, LabelColumn
from search_spaces.domains import UserError


class SubsetImages(Images):
    """Chosen positions of other images, in the order given.

    Attributes:
        parent, rows: the other images, and the positions in them.
        base, index: the same where the parent is itself a choice of others.
    """

    def __init__(self, base: Images, index: IntArray) -> None:
        self.parent, self.rows = base, index
        outer = base.index[index] if isinstance(base, SubsetImages) else index
        self.base: Images = base.base if isinstance(base, SubsetImages) else base
        self.index: IntArray = np.ascontiguousarray(outer, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> Tensor:
        return self.base.take(torch.from_numpy(self.index[index.numpy()]))


class JoinedImages(Images):
    """Several sets of images of one shape, one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        assert parts
        assert len({part.shape for part in parts}) == 1, [part.shape for part in parts]
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.parts[0].shape

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, index: Tensor) -> Tensor:
        out = torch.empty((len(index), *self.shape), dtype=torch.uint8, memory_format=torch.channels_last)
        part = np.searchsorted(self.starts, index.numpy(), side="right") - 1
        for number in np.unique(part):
            rows = torch.from_numpy(np.flatnonzero(part == number))
            out[rows] = self.parts[number].take(index[rows] - int(self.starts[number]))
        return out


class RotatedImages(Images):
    """Square images four times over: positions 0 .. N-1 as they are, then all turned by 90, 180 and 270 degrees."""

    def __init__(self, base: Images) -> None:
        _, height, width = base.shape
        if height != width:
            raise UserError(
                f"rotations as new classes need square images, got {width}x{height}; set size or leave rotations off"
            )
        self.base = base

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    def __len__(self) -> int:
        return 4 * len(self.base)

    def take(self, index: Tensor) -> Tensor:
        out = self.base.take(index % len(self.base)).clone(memory_format=torch.channels_last)
        turns = index // len(self.base)
        for turn in (1, 2, 3):
            rows = (turns == turn).nonzero().flatten()
            if len(rows):
                out[rows] = out[rows].rot90(turn, dims=(2, 3))
        return out


def image_hashes(images: Images, chunk: int = 1024) -> list[bytes]:
    """A digest of every image's pixels: equal where two images are the same, pixel for pixel."""
    found: list[bytes] = []
    for start in range(0, len(images), chunk):
        taken = images.take(torch.arange(start, min(start + chunk, len(images)))).contiguous().numpy()
        found += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in taken]
    return found


def select(data: ImageSet, index: IntArray) -> ImageSet:
    """The images at these positions with everything known about them; classes and groups keep their numbers."""
    return dataclasses.replace(
        data,
        images=SubsetImages(data.images, index),
        label=data.label[index],
        group=None if data.group is None else data.group[index],
        captions=tuple(data.captions[i] for i in index) if data.captions else (),
        names=tuple(data.names[i] for i in index) if data.names else (),
        targets=tuple(dataclasses.replace(column, label=column.label[index]) for column in data.targets),
        validates=None if data.validates is None else data.validates[index],
        fold=None if data.fold is None else data.fold[index],
    )


def renumber(data: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The same images with labels that count into ``classes``; images of other classes become unlabelled."""
    number = {name: k for k, name in enumerate(classes)}
    new = np.array([number.get(name, -1) for name in data.classes] + [-1], dtype=np.int64)
    return dataclasses.replace(data, label=new[data.label], classes=tuple(classes))


def join(parts: Sequence[ImageSet]) -> ImageSet:
    """Several image sets as one; classes and groups of the same name become one.

    Raises:
        UserError: the images differ in shape.
    """
    if len(parts) == 1:
        return parts[0]
    shapes = {part.images.shape for part in parts}
    if len(shapes) > 1:
        found = ", ".join(f"{w}x{h} with {c} channels" for c, h, w in sorted(shapes))
        raise UserError(f"images that are put together need one shape, got {found}; set size")
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    images: Images
    if all(isinstance(part.images, ArrayImages) for part in parts):
        images = ArrayImages(np.concatenate([part.images.array for part in parts if isinstance(part.images, ArrayImages)]))
    else:
        images = JoinedImages([part.images for part in parts])
    captions = tuple(c for part in parts for c in (part.captions or ("",) * len(part)))
    captioned = any(captions)
    groups = tuple(dict.fromkeys(name for part in parts for name in part.groups))
    # A part without any label, such as the crops of an image, takes no group away from the others.
    named = [part for part in parts if part.group is not None or (part.label >= 0).any()]
    grouped = bool(named) and all(part.group is not None for part in named)
    further = dict.fromkeys(column.name for part in parts for column in part.targets)
    return ImageSet(
        images=images,
        label=np.concatenate([renumber(part, classes).label for part in parts]),
        classes=classes,
        group=np.concatenate([_regroup(part, groups) for part in parts]) if grouped else None,
        groups=groups if grouped else (),
        captions=captions if captioned else (),
        names=tuple(n for part in parts for n in part.names) if all(part.names for part in parts) else (),
        flip=all(part.flip for part in parts),
        caption_labels=any(part.caption_labels for part in parts),
        targets=tuple(_join_targets(name, parts) for name in further),
        validates=_join_column([part.validates for part in parts], parts, False, bool),
        fold=_join_column([part.fold for part in parts], parts, -1, np.int64),
    )


def _regroup(part: ImageSet, groups: tuple[str, ...]) -> IntArray:
    if part.group is None:
        return np.full(len(part), -1, dtype=np.int64)
    number = np.array([groups.index(name) for name in part.groups] + [-1], dtype=np.int64)
    return number[part.group]


def _join_targets(name: str, parts: Sequence[ImageSet]) -> LabelColumn:
    """One further label column of all parts, unknown in those that lack it."""
    found = [next((c for c in part.targets if c.name == name), None) for part in parts]
    classes = tuple(dict.fromkeys(value for column in found if column is not None for value in column.classes))
    own = [None if c is None else np.array([*map(classes.index, c.classes), -1], dtype=np.int64)[c.label] for c in found]
    label = _join_column(own, parts, -1, np.int64)
    assert label is not None, "the name came from one of the parts"
    return LabelColumn(name, classes, label)


def _join_column(
    columns: Sequence[NDArray[Any] | None], parts: Sequence[ImageSet], blank: int, kind: type
) -> NDArray[Any] | None:
    """One column of all parts, ``blank`` for those that lack it; None where all do."""
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [np.full(len(part), blank, dtype=kind) if own is None else own for own, part in zip(columns, parts, strict=True)]
    )
