"""Folds of the label budget: every label judges once, and the folds nest in the search's division.

The first folds divide the search's validation part, the others its training part. So a fold that is the whole validation part
is judged on what the search's trials are judged on, by a model that learnt from the same labels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from methods.batch import seed_of
from methods.data.budget import relabelled
from methods.data.records import IntArray, LabelledSubset, Split, TrainData
from methods.data.views import SubsetImages
from search_spaces.domains import UserError

MOST = 5
"""Folds of a final cross-validation, unless the data brings its own."""


def share_of_validation(split: Split) -> float:
    """The validation part's share of the budget."""
    return len(split.validation) / (len(split.validation) + len(split.labelled))


def fold_counts(split: Split) -> tuple[int, ...]:
    """Numbers of folds of about one size that nest in the division, ascending; the data's own number where it has folds."""
    if (own := own_folds(split)) is not None:
        return (int(own.max()) + 1,)
    share = share_of_validation(split)
    may = [count for count in range(2, MOST + 1) if not _lacks_groups(split, count)] or [2]
    fit = [count for count in may if abs(_first(count, share) / count - share) < 0.07]
    # Where none fits (a small validation part), most folds leave most labels to learn from.
    return tuple(fit) or (may[-1],)


def own_folds(split: Split) -> IntArray | None:
    """int64 [n], the budget's images by the data's ``fold`` column, numbered from 0; None where the data has none."""
    column = split.labelled.data.fold
    if column is None:
        return None
    whole = column[split.budget().index]
    if (whole < 0).any():
        raise UserError(
            f"a fold column must give the fold of every label of the budget, but {int((whole < 0).sum())} of {len(whole)} are"
            " blank; fill it or leave the column out"
        )
    if split.kept is not None:
        pairs = np.unique(np.stack([split.kept, whole]), axis=1)
        units, count = np.unique(pairs[0], return_counts=True)
        if (count > 1).any():
            first = whole[split.kept == units[count > 1][0]]
            raise UserError(
                f"keep_groups allows no group in two folds, but by the fold column {int((count > 1).sum())} are, the first in"
                f" folds {' and '.join(map(str, np.unique(first)[:2]))}; correct the column, or leave keep_groups out"
            )
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)


def fold_of(split: Split, count: int, seed: int) -> IntArray:
    """int64 [n]: the fold in which each image of ``split.budget()`` judges; stratified, groups kept whole.

    Raises:
        UserError: more folds than labels of a class, or than groups.
    """
    if (own := own_folds(split)) is not None:
        if count != own.max() + 1:
            raise UserError(f"selection.folds is what the data's fold column says, {own.max() + 1}, got {count}; leave it out")
        return own
    if count not in fold_counts(split) and (reason := _refusal(split, count)):
        raise UserError(f"selection.folds must be {reason}, got {count}; use fewer folds")
    whole = split.budget()
    found = np.empty(len(whole), dtype=np.int64)
    for rows, begin, number in _sides(split, count):
        kept = None if split.kept is None else split.kept[rows]
        found[rows] = begin + _dealt(whole.label[rows], kept, number, seed_of(seed, "folds", begin, number))
    return found


def _sides(split: Split, count: int) -> tuple[tuple[NDArray[np.bool_], int, int], ...]:
    """Of validation and training part: which images of the budget, the first of its folds, and how many there are."""
    first = _first(count, share_of_validation(split))
    inside = np.arange(len(split.budget())) >= len(split.labelled)
    return (inside, 0, first), (~inside, first, count - first)


def _refusal(split: Split, count: int) -> str:
    """What the number of folds would have to be; blank where it can be."""
    whole = split.budget()
    labels = np.bincount(whole.label)
    if count > labels.min():
        return f"at most the labels of every class, {labels.min()} of {whole.data.classes[int(labels.argmin())]}"
    return _lacks_groups(split, count)


def _lacks_groups(split: Split, count: int) -> str:
    if split.kept is not None:
        for rows, _, number in _sides(split, count):
            groups = len(np.unique(split.kept[rows]))
            if groups < number:
                return f"so few that each has a group of its own, of {groups} groups in one part of the division"
    return ""


def _first(count: int, share: float) -> int:
    """Of ``count`` folds those that divide the validation part."""
    return min(max(round(count * share + 1e-9), 1), count - 1)


def _dealt(label: IntArray, kept: IntArray | None, folds: int, seed: int) -> IntArray:
    """int64 [n], 0 .. folds - 1: sizes differ by one at most, of every class too; whole groups as well as they allow."""
    if folds == 1:
        return np.zeros(len(label), dtype=np.int64)
    random = np.random.default_rng(seed)
    if kept is None:
        order = random.permutation(len(label))
        order = order[np.argsort(label[order], kind="stable")]
        found = np.empty(len(label), dtype=np.int64)
        found[order] = np.arange(len(label)) % folds
        return random.permutation(folds)[found]
    found = np.empty(len(label), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    for number, (_, held) in enumerate(splitter.split(label, label, kept)):
        found[held] = number
    return found


def folds_of(split: Split, count: int, seed: int) -> tuple[Split, ...]:
    """``count`` divisions of the same budget, each with one fold that validates and the others that train."""
    whole, fold = split.budget(), fold_of(split, count, seed)
    return tuple(_with(split, whole, fold != number) for number in range(count))


def thinned(split: Split, share: float, seed: int) -> Split:
    """The division with ``share`` of its training labels, stratified, at least one of each class; what validates stays."""
    label, random = split.labelled.label, np.random.default_rng(seed_of(seed, "thinned"))
    keep = np.zeros(len(label), dtype=bool)
    for k in np.unique(label):
        rows = random.permutation(np.flatnonzero(label == k))
        keep[rows[: max(1, round(share * len(rows)))]] = True
    return dataclasses.replace(split, train=_showing(split, split.labelled, keep), labelled=_rows(split.labelled, keep))


def _with(split: Split, whole: LabelledSubset, trains: NDArray[np.bool_]) -> Split:
    return dataclasses.replace(
        split, train=_showing(split, whole, trains), labelled=_rows(whole, trains), validation=_rows(whole, ~trains)
    )


def without_judging_groups(split: Split) -> Split:
    """The division whose training data lacks every image, labelled or not, of a group that validates.

    Where no groups are kept together it is as it was: then the pool is the same for every division.
    """
    if split.unit is None:
        return split
    stays = np.flatnonzero(~np.isin(split.unit, split.unit[split.validation.index]))
    return dataclasses.replace(split, train=taken(split.train, stays))


def taken(train: TrainData, rows: IntArray) -> TrainData:
    """Training data of these images alone; mean and deviation stay those of the pool, which a frozen encoder is shown by."""
    return dataclasses.replace(
        train,
        images=SubsetImages(train.images, rows),
        label=train.label[rows],
        group=None if train.group is None else train.group[rows],
        tokens=None if train.tokens is None else train.tokens[rows],
        targets=tuple(dataclasses.replace(column, label=column.label[rows]) for column in train.targets),
        position=rows if train.position is None else train.position[rows],
    )


def _showing(split: Split, part: LabelledSubset, rows: NDArray[np.bool_]) -> TrainData:
    label = np.full(len(split.train), -1, dtype=np.int64)
    label[part.index[rows]] = part.label[rows]
    return relabelled(split.train, part.data, label)


def _rows(part: LabelledSubset, rows: NDArray[np.bool_]) -> LabelledSubset:
    return LabelledSubset(part.data, part.index[rows], part.label[rows])
