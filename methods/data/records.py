"""Images and labels as the rest of labelwise sees them: typed, read-only, images as uint8."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


class Images(ABC):
    """Many images of one size, addressed by position."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, index: Tensor) -> Tensor:
        """uint8 [B, C, H, W] on the CPU, channels_last, for int64 positions [B]."""


class ArrayImages(Images):
    """Images in memory: one uint8 array [N, H, W, C], possibly read-only and shared between processes."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        assert array.ndim == 4, array.shape
        assert array.dtype == np.uint8, array.dtype
        self.array = array
        with warnings.catch_warnings():
            # Shared arrays are read-only and torch warns of that; nothing here ever writes to them.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._tensor = torch.from_numpy(array)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w, c = self.array.shape
        return c, h, w

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def take(self, index: Tensor) -> Tensor:
        return self._tensor[index].permute(0, 3, 1, 2)

    def __reduce__(self) -> tuple[type[ArrayImages], tuple[NDArray[np.uint8]]]:
        return ArrayImages, (self.array,)


@dataclass(frozen=True)
class LabelColumn:
    """A further label of every image (font, size, scanner): ``label`` int64 [N] counts into ``classes``, -1 where unknown."""

    name: str
    classes: tuple[str, ...]
    label: IntArray

    def shown(self, where: NDArray[np.bool_]) -> LabelColumn:
        """The column with every label outside ``where``, bool [N], hidden."""
        return LabelColumn(self.name, self.classes, np.where(where, self.label, -1))


@dataclass(frozen=True)
class ImageSet:
    """Images with what is known about them.

    Attributes:
        images: the images.
        label: int64 [N], -1 where unlabelled.
        classes: class names; ``label`` counts into them.
        group: int64 [N] (alphabet, domain), or None.
        groups: group names.
        captions: a text for each image, blank where it has none, or ().
        names: file names relative to the source, or ().
        flip: whether a mirrored image keeps its meaning; False for characters and digits.
        caption_labels: whether captions tell the class, so that they are hidden wherever the label is.
        targets: further labels of every image, or ().
        validates: bool [N], the images that the data itself sets apart to validate (a ``split`` column), or None.
        fold: int64 [N], the fold of a cross-validation that each image is in (a ``fold`` column), -1 where none; or None.
    """

    images: Images
    label: IntArray
    classes: tuple[str, ...]
    group: IntArray | None = None
    groups: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    flip: bool = True
    caption_labels: bool = False
    targets: tuple[LabelColumn, ...] = ()
    validates: NDArray[np.bool_] | None = None
    fold: IntArray | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Source:
    """What a data specification holds: training images, and test images where it brings its own.

    Attributes:
        train, test: the images.
        validation: names of classes in ``train`` that the source sets apart to validate on (a division by class, as few-shot
            benchmarks have).
        notes: what a person should know of the loading, a sentence each (files left out, parts put together).
    """

    train: ImageSet
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledSubset:
    """Positions in an ``ImageSet`` with their labels: a part of the label budget, or a test set.

    Attributes:
        data: the images.
        index: int64 [n], positions in ``data``.
        label: int64 [n], 0 .. len(data.classes) - 1.
    """

    data: ImageSet
    index: IntArray
    label: IntArray

    def __len__(self) -> int:
        return len(self.index)

    def groups(self) -> IntArray | None:
        """int64 [n], the groups of these images, or None where the data has none."""
        return None if self.data.group is None else self.data.group[self.index]


@dataclass(frozen=True)
class TrainData:
    """All that a method may see: every training image, and the training part of the label budget.

    Attributes:
        images: the pool, labelled and unlabelled.
        label: int64 [N], -1 where the label is hidden (unlabelled, validation, beyond the budget).
        classes: number of classes.
        mean, std: per channel, of the pool in [0, 1].
        group: int64 [N] or None.
        tokens: int64 [N, L] captions as token ids, 0 where there is none; or None.
        flip: whether a mirrored image keeps its meaning.
        names: class names, or () where they are not known.
        words: of the captions; token k is ``words[k - 1]``.
        caption_labels: whether captions tell the class; only those of images with a label are then here.
        targets: further label columns, hidden wherever the label is.
        position: int64 [N], where these images stand in the study's pool; None where they are the pool.
    """

    images: Images
    label: IntArray
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    group: IntArray | None = None
    tokens: IntArray | None = None
    flip: bool = True
    names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    caption_labels: bool = False
    targets: tuple[LabelColumn, ...] = ()
    position: IntArray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def target_labels(self) -> IntArray | None:
        """int64 [N, M]: the further label columns side by side, -1 where hidden; None where there is none."""
        return np.stack([column.label for column in self.targets], axis=1) if self.targets else None


@dataclass(frozen=True)
class Split:
    """A study's data, divided: what methods see, what chooses, and what is opened at the end.

    Attributes:
        train: what methods see.
        labelled: the training part of the label budget (classification) or all images of the training classes (few-shot).
        validation: the validation part of the budget, or all images of the validation classes (few-shot).
        test: the test images; the orchestrator alone opens them, once, and hands a copy without them (None) to the slots.
        holdout: whether ``test`` was taken from the training data because there was no test set.
        folds: of a cross-validation (few-shot): one split for each group that validates in turn. ``train`` and ``labelled``
            then hold all groups, and ``validation`` the images that some fold asks. Empty otherwise.
        left_out: names of classes with too few images for the study's episodes, which are not asked (few-shot).
        unit: int64 [N], by which images of the pool belong together (``keep_groups``); None where none do.
    """

    train: TrainData
    labelled: LabelledSubset
    validation: LabelledSubset
    test: LabelledSubset | None
    holdout: bool
    folds: tuple[Split, ...] = ()
    left_out: tuple[str, ...] = ()
    unit: IntArray | None = None

    @property
    def kept(self) -> IntArray | None:
        """int64 [n]: by which images of ``budget()``, in its order, belong together; None where none do."""
        return None if self.unit is None else self.unit[self.budget().index]

    @property
    def new_classes(self) -> bool:
        """Whether validation asks about classes that training does not have (few-shot)."""
        return self.labelled.data is not self.validation.data

    def divisions(self) -> tuple[Split, ...]:
        """The splits on which a configuration is trained and scored: the folds of a cross-validation, else this one."""
        return self.folds or (self,)

    def fewest_images(self) -> int:
        """The fewest training images that a training of a configuration sees: those of the smallest fold."""
        return min(len(split.train) for split in self.divisions())

    def budget(self) -> LabelledSubset:
        """Every label the study may use: training and validation part together (classification only)."""
        assert not self.new_classes, "few-shot parts hold different classes and are never put together"
        return LabelledSubset(
            self.labelled.data,
            np.concatenate([self.labelled.index, self.validation.index]),
            np.concatenate([self.labelled.label, self.validation.label]),
        )


def channel_statistics(images: Images, sample: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in [0, 1], from at most ``sample`` evenly spaced images."""
    index = torch.linspace(0, len(images) - 1, min(len(images), sample)).round().long()
    x = images.take(index).float().div_(255)
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())
