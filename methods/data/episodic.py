"""Few-shot data: classes held out for the test, and N-way K-shot episodes drawn by learn2learn.

Where test and validation classes come from:

- a test source of its own, or ``test_groups`` of it: its classes must be new and its images must not occur in training
  (a source whose own test part has the training classes counts as one set of images);
- ``test_groups`` without a test source: those groups (alphabets) are held out;
- neither: a seeded share of the groups (or classes, ``by``) is held out;
- ``test="none"``: there is no test, and nothing is held out for one.

Validation classes are a seeded share of what remains; in a cross-validation each group in turn, and the final training sees
all groups. Methods see the images of the training classes alone, all labelled;
unlabelled images join their pool where no test is held out of the source itself, since those might show test classes. They may
show validation classes, whose score is then optimistic for methods that learn from unlabelled images; the test's is not.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from methods.batch import EpisodeShape, seed_of
from methods.data.budget import train_data
from methods.data.records import ImageSet, IntArray, LabelledSubset, Source, Split
from methods.data.views import RotatedImages, image_hashes, join, renumber, select
from methods.parts.l2l import learn2learn
from search_spaces.domains import UserError, nearest

By = Literal["class", "group"]
SHARE = 0.2
QUARTERS = ("90", "180", "270")
NO_TEST: Final = "none"
"""In the place of a test source: no test is made."""


def split_few_shot(
    source: Source,
    *,
    test: Source | ImageSet | Literal["none"] | None = None,
    test_groups: Sequence[str] = (),
    by: By | None = None,
    test_share: float = SHARE,
    validation_share: float = SHARE,
    cross_validate: EpisodeShape | None = None,
    rotations: bool = False,
    seed: int = 0,
) -> Split:
    """Divides a source by class, by the rules of the module's docstring.

    Args:
        source: the data; its own test images are its test source unless ``test`` names another.
        test: a test source, or ``none`` for no test.
        test_groups: names of the groups to test on.
        by: hold out whole groups or single classes; None for groups where there are at least three.
        test_share: share of groups or classes held out where no test source and no groups are named.
        validation_share: share of the remaining groups or classes that validate, where the source sets none apart.
        cross_validate: every remaining group that holds an episode of this shape validates in turn; see ``Split.folds``.
        rotations: the training classes turned by 90, 180 and 270 degrees are further classes (training only).
        seed: of all draws.
    Returns:
        A split whose parts have classes of their own: ``labelled.data``, ``validation.data`` and ``test.data`` differ, and
        ``labelled.index`` counts into ``train.images``.
    Raises:
        UserError: too few classes or groups, an unknown group, a class that lies in several groups and is held out by group,
            classes or images that training and test share.
    """
    if by not in (None, "class", "group"):
        raise UserError(f"by must be class or group, got {by!r}; leave it out to hold out groups where there are any")
    for name, share in (("test_share", test_share), ("validation_share", validation_share)):
        if not 0 < share < 1:
            raise UserError(f"{name} must lie between 0 and 1, got {share}; {SHARE} is the default")
    data = source.train
    untested = test == NO_TEST
    if untested and test_groups:
        raise UserError(f"test_groups name what to test on, got {test_groups[0]} beside test: {NO_TEST}; leave one of them out")
    given = test.train if isinstance(test, Source) else None if isinstance(test, str) else test
    if given is None and source.test is not None:
        if set(source.test.classes) & set(data.classes):
            data = join([data, source.test])
        elif not untested:
            given = source.test
    apart = given is not None or untested
    _some_classes(data, *((2, "to train and to validate") if apart else (3, "to train, to validate and to test")))
    by = by or ("group" if _count_groups(data) >= 3 else "class")
    held = np.zeros(len(data), dtype=bool)
    if not apart and test_groups:
        held = _in_groups(data, test_groups)
    elif not apart:
        free = data if not source.validation else dataclasses.replace(data, label=_without(data, source.validation))
        held = _draw_units(free, "class" if source.validation else by, test_share, seed_of(seed, "test classes"))
    _refuse_divided(data, held)
    rest = select(data, np.flatnonzero(~held & (data.label >= 0)))
    tested = None
    if not untested:
        tested = select(data, np.flatnonzero(held)) if given is None else given
        tested = _of_groups(tested, test_groups) if given is not None and test_groups else tested
        tested = _own_classes(select(tested, np.flatnonzero(tested.label >= 0)))
        _some_classes(tested, 2, "to test")
        if given is not None:
            _refuse_shared(rest, tested)
    extra = select(data, np.flatnonzero(data.label < 0)) if apart and not rotations else None

    def parts(validates: np.ndarray) -> Split:
        """Training on the images outside ``validates``, bool [n], validation on those inside."""
        _refuse_divided(rest, validates)
        train, validation = (_own_classes(select(rest, np.flatnonzero(rows))) for rows in (~validates, validates))
        pool = rotated(train) if rotations else train
        if extra is not None and len(extra):
            pool = join([train, renumber(extra, train.classes)])
        return Split(train_data(pool, pool.label), _all_of(pool), _all_of(validation), None, False)

    if cross_validate is None:
        validates = _without(rest, source.validation) < 0
        if validates.all() or not validates.any():
            validates = _draw_units(rest, by, validation_share, seed_of(seed, "validation classes"))
        chosen = parts(validates)
    else:
        asked = _groups_in_turn(rest, cross_validate)
        whole = parts(np.zeros(len(rest), dtype=bool))
        validation = _own_classes(select(rest, np.flatnonzero(np.any(asked, axis=0))))
        folds = tuple(parts(rows) for rows in asked)
        chosen = dataclasses.replace(whole, validation=_all_of(validation), folds=folds)
    test_part = None if tested is None else _all_of(tested)
    return dataclasses.replace(chosen, test=test_part, holdout=given is None and not untested)


def _groups_in_turn(data: ImageSet, shape: EpisodeShape) -> list[np.ndarray]:
    """bool [N] each: the images of every group that holds an episode of this shape, so that it can validate in turn."""
    if data.group is None:
        raise UserError(
            "cross_validate leaves out one group in turn and needs data with groups (alphabet/character folders), got none;"
            " leave it out"
        )
    need = shape.shots + shape.queries
    fit = np.flatnonzero(np.bincount(data.label, minlength=1) >= need)
    present = np.unique(data.group[data.group >= 0])
    sizes = [len(np.intersect1d(data.label[data.group == group], fit)) for group in present]
    found = [data.group == group for group, size in zip(present, sizes, strict=True) if size >= shape.ways]
    if len(found) < 2:
        raise UserError(
            f"cross_validate needs at least 2 groups of {shape.ways} classes with {need} images ({shape.shots} shots and"
            f" {shape.queries} queries), got {len(found)} of {len(present)} groups; lower ways or queries, or leave it out"
        )
    return found


def rotated(data: ImageSet) -> ImageSet:
    """The images four times over, those turned by 90, 180 and 270 degrees as classes of their own; groups stay."""
    count = len(data.classes)
    return ImageSet(
        images=RotatedImages(data.images),
        label=np.concatenate([np.where(data.label >= 0, data.label + turn * count, -1) for turn in range(4)]),
        classes=data.classes + tuple(f"{name} turned by {turn}" for turn in QUARTERS for name in data.classes),
        group=None if data.group is None else np.tile(data.group, 4),
        groups=data.groups,
        flip=data.flip,
    )


def duplicates(first: ImageSet, second: ImageSet) -> IntArray:
    """int64 [n]: positions in ``second`` of images that ``first`` holds too, pixel for pixel."""
    known = set(image_hashes(first.images))
    return np.array([i for i, digest in enumerate(image_hashes(second.images)) if digest in known], dtype=np.int64)


def _refuse_shared(train: ImageSet, tested: ImageSet) -> None:
    if tested.images.shape != train.images.shape:
        (c, h, w), (d, i, j) = tested.images.shape, train.images.shape
        what = f"{j}x{i} with {d} channels, got {w}x{h} with {c}"
        raise UserError(f"test images must have the training images' shape, {what}; load them with size and channels")
    known = set(image_hashes(train.images))
    shared = [i for i, digest in enumerate(image_hashes(tested.images)) if digest in known]
    if shared:
        units = tested.groups if tested.group is not None else tested.classes
        of = tested.group if tested.group is not None else tested.label
        counts = np.bincount(of[shared], minlength=len(units))
        where = ", ".join(f"{counts[k]} in {units[k]}" for k in np.flatnonzero(counts)[:4])
        raise UserError(
            f"training and test must share no image, but {len(shared)} of {len(tested)} test images are in the training data"
            f" too ({where}); name other test_groups or remove them"
        )
    both = sorted(set(_own_classes(train).classes) & set(tested.classes))
    if both:
        raise UserError(
            f"test classes must be new in few-shot learning, but {len(both)} are training classes too, first {both[0]};"
            " remove or rename them"
        )


def _refuse_divided(data: ImageSet, held: np.ndarray) -> None:
    """Held-out classes must be new, which whole groups do not ensure where a class lies in several (domains, not alphabets)."""
    both = np.intersect1d(data.label[held & (data.label >= 0)], data.label[~held])
    if len(both):
        raise UserError(
            f"classes held out by group must lie in that group alone, but {len(both)} lie in others or in none too, first"
            f" {data.classes[both[0]]}; hold out by class, or leave the groups out of the data"
        )


def _without(data: ImageSet, names: Sequence[str]) -> IntArray:
    """The labels, -1 for images of the named classes."""
    return np.where(np.isin(data.label, [k for k, name in enumerate(data.classes) if name in names]), -1, data.label)


def _all_of(data: ImageSet) -> LabelledSubset:
    index = np.flatnonzero(data.label >= 0)
    return LabelledSubset(data, index, data.label[index])


def _own_classes(data: ImageSet) -> ImageSet:
    """Numbered anew: the classes and groups that occur, from 0."""
    data = renumber(data, [data.classes[k] for k in np.unique(data.label) if k >= 0])
    if data.group is None:
        return data
    present = [k for k in np.unique(data.group) if k >= 0]
    number = np.full(len(data.groups) + 1, -1, dtype=np.int64)
    number[present] = np.arange(len(present))
    return dataclasses.replace(data, group=number[data.group], groups=tuple(data.groups[k] for k in present))


def _some_classes(data: ImageSet, need: int, what: str) -> None:
    found = len(np.unique(data.label[data.label >= 0]))
    if found < need:
        raise UserError(f"few-shot learning needs at least {need} classes {what}, got {found}; add classes")


def _count_groups(data: ImageSet) -> int:
    return 0 if data.group is None else len(np.unique(data.group[(data.label >= 0) & (data.group >= 0)]))


def _in_groups(data: ImageSet, names: Sequence[str]) -> np.ndarray:
    """bool [N]: images of the named groups."""
    if data.group is None:
        raise UserError(
            f"test_groups needs data with groups (alphabet/character folders), got {names[0]} but no groups; leave it out"
        )
    for name in names:
        if name not in data.groups:
            raise UserError(f"test_groups must name groups of the data, got {name}{nearest(name, data.groups)}")
    return np.isin(data.group, [data.groups.index(name) for name in names])


def _of_groups(data: ImageSet, names: Sequence[str]) -> ImageSet:
    return select(data, np.flatnonzero(_in_groups(data, names)))


def _draw_units(data: ImageSet, by: By, share: float, seed: int) -> np.ndarray:
    """bool [N]: labelled images of a drawn share of the groups or classes, at least one and never all."""
    if by == "group" and _count_groups(data) < 2:
        if data.group is None:
            raise UserError("holding out groups needs data with groups (alphabet/character folders), got none; use by: class")
        by = "class"  # one alphabet is left, so its characters are divided
    unit = data.group if by == "group" and data.group is not None else data.label
    present = np.unique(unit[(data.label >= 0) & (unit >= 0)])
    if len(present) < 2:
        raise UserError(f"holding out classes needs at least 2 of them, got {len(present)}; add classes or hold out fewer")
    take = min(max(1, round(share * len(present))), len(present) - 1)
    drawn = np.random.default_rng(seed).permutation(present)[:take]
    return np.isin(unit, drawn) & (data.label >= 0)


class EpisodeSampler:
    """N-way K-shot episodes, drawn by learn2learn's MetaDataset, FusedNWaysKShots and TaskDataset.

    Every task is a fixed function of (seed, step, its number in the meta-batch), so the sampler has no state and any worker
    can draw any task. Python's global random state, which learn2learn draws from, is left as it was.

    Classes with fewer images than shots + queries take no part (``left_out``), nor, within groups, do groups with fewer
    such classes than ways: few-shot data often has a few of either.

    Raises:
        UserError: fewer than ``ways`` classes take part, or within groups no group has as many.
    """

    def __init__(self, labels: IntArray, groups: IntArray | None, shape: EpisodeShape, seed: int) -> None:
        self.shape, self.seed = shape, seed
        need = shape.shots + shape.queries
        count = np.bincount(labels[labels >= 0], minlength=1)
        fit = np.flatnonzero(count >= need)
        self.left_out: tuple[int, ...] = tuple(int(k) for k in np.flatnonzero((count > 0) & (count < need)))
        if len(fit) < shape.ways:
            raise UserError(
                f"{shape.ways}-way episodes need {shape.ways} classes of at least {need} images ({shape.shots} shots and"
                f" {shape.queries} queries), got {len(fit)}; lower ways, shots or queries"
            )
        usable = np.isin(labels, fit)
        if shape.within_group:
            if groups is None:
                raise UserError(
                    "episodes within groups need data with groups (alphabet/character folders), got none; switch it off"
                )
            # A class may lie in several groups (domains, not alphabets): each has to hold enough of its images.
            rows = [np.flatnonzero(usable & (groups == g)) for g in np.unique(groups[usable]) if g >= 0]
            rows = [own[np.bincount(labels[own])[labels[own]] >= need] for own in rows]
            sizes = [len(np.unique(labels[own])) for own in rows]
            members = [own for own, size in zip(rows, sizes, strict=True) if size >= shape.ways]
            if not members:
                largest = max(sizes, default=0)
                raise UserError(
                    f"{shape.ways}-way episodes within groups need a group of {shape.ways} classes, got at most {largest};"
                    " lower ways or switch them off"
                )
        else:
            members = [np.flatnonzero(usable)]
        self._tasks = [task_set(rows, labels[rows], shape.ways, need) for rows in members]
        mixed = shape.within_group and shape.across > 0
        every = np.flatnonzero(usable)
        self._everything = task_set(every, labels[every], shape.ways, need) if mixed else None

    def indices(self, step: int, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """Positions of one meta-batch: support int64 [t, N*K] and query int64 [t, N*Q], class by class."""
        numbers = range(self.shape.tasks)[rows if rows is not None else slice(None)]
        n, k, q = self.shape.ways, self.shape.shots, self.shape.queries
        drawn = torch.empty((len(numbers), n, k + q), dtype=torch.int64)
        before = random.getstate()
        try:
            for row, number in enumerate(numbers):
                random.seed(seed_of(self.seed, "episode", step, number))
                if self._everything is not None and random.random() < self.shape.across:
                    tasks = self._everything
                else:
                    tasks = self._tasks[0] if len(self._tasks) == 1 else random.choice(self._tasks)
                drawn[row] = tasks[0].view(n, k + q)
        finally:
            random.setstate(before)
        return drawn[:, :, :k].reshape(len(numbers), n * k), drawn[:, :, k:].reshape(len(numbers), n * q)

    def labels(self, tasks: int | None = None) -> tuple[Tensor, Tensor]:
        """Labels inside the task for the positions of ``indices``: int64 [t, N*K] and [t, N*Q], 0 .. N-1."""
        t = self.shape.tasks if tasks is None else tasks
        way = torch.arange(self.shape.ways)
        return way.repeat_interleave(self.shape.shots).repeat(t, 1), way.repeat_interleave(self.shape.queries).repeat(t, 1)


def task_set(positions: IntArray, labels: IntArray, ways: int, images: int, load: Callable[[Tensor], Any] | None = None) -> Any:
    """learn2learn's TaskDataset over these images: each task is ``load`` of its positions (the positions themselves
    without ``load``), ``images`` of each of ``ways`` classes, gathered in one step.

    Args:
        positions: int64 [n], where the images lie.
        labels: int64 [n].
        load: from int64 [ways * images] positions to whatever a task shall be, such as ``Images.take``.
    """
    l2l = learn2learn("data")

    by_class: dict[int, list[int]] = {int(k): np.flatnonzero(labels == k).tolist() for k in np.unique(labels)}
    dataset = l2l.MetaDataset(_rows_class()(len(positions)), labels_to_indices=by_class)
    together = _load_together_class()(dataset, torch.from_numpy(positions), load)
    transforms = [l2l.transforms.FusedNWaysKShots(dataset, n=ways, k=images), together]
    return l2l.TaskDataset(dataset, transforms, task_collate=_only)


def _only(task: list[Any]) -> Any:
    (data,) = task
    return data


@dataclasses.dataclass(frozen=True)
class TaskDescription:
    """A whole task as one item of a learn2learn task description: all its positions, and the transforms to run on them."""

    index: Tensor
    transforms: list[Callable[[Tensor], Any]]


@functools.cache
def _rows_class() -> type:
    from torch.utils.data import Dataset

    class Rows(Dataset):
        """Row numbers as a data set: episodes need no more of it."""

        def __init__(self, n: int) -> None:
            self.n = n

        def __len__(self) -> int:
            return self.n

        def __getitem__(self, row: int) -> int:
            return row

    return Rows


@functools.cache
def _load_together_class() -> type:
    TaskTransform: Any = learn2learn("data.transforms").TaskTransform

    class LoadTogether(TaskTransform):
        """Stands where LoadData would: instead of a loader per image, one for the whole task."""

        def __init__(self, dataset: Any, positions: Tensor, load: Callable[[Tensor], Any] | None) -> None:
            super().__init__(dataset)
            self.positions = positions
            self.loaders = [] if load is None else [load]

        def __call__(self, description: Sequence[Any] | None) -> list[TaskDescription]:
            items = self.new_task() if description is None else description
            rows = torch.tensor([item.index for item in items])
            return [TaskDescription(self.positions[rows], self.loaders)]

    return LoadTogether
