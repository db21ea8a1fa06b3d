"""Folds of the label budget: disjoint, whole, stratified, nested in the search's division, groups kept together."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.catalogue import CATALOGUE
from methods.data import budget, folding
from methods.data.records import ArrayImages, ImageSet, Source, Split
from methods.tasks.classification import Classification
from search_spaces.domains import UserError


def divided(
    per_class: list[int], validation: float | None = None, groups: int = 0, seed: int = 0, labels: int | Literal["all"] = "all"
) -> Split:
    """A split of distinct images, with a test set of its own; all labels are the budget unless ``labels`` says otherwise."""
    label = np.repeat(np.arange(len(per_class)), per_class)
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (len(label), 8, 8, 1), dtype=np.uint8)
    group = random.integers(0, groups, len(label)) if groups else None
    names = tuple(f"class {k}" for k in range(len(per_class)))
    data = ImageSet(ArrayImages(images), label, names, group, tuple(f"g{k}" for k in range(groups)))
    test = ImageSet(ArrayImages(255 - images[:: len(images) // 9]), label[:: len(images) // 9], names)
    return budget.split(Source(data), labels=labels, test=test, validation=validation, keep_groups=groups > 0, seed=seed)


@settings(deadline=None, max_examples=60)
@given(
    per_class=st.lists(st.integers(5, 20), min_size=2, max_size=5), count=st.integers(2, 5),
    validation=st.sampled_from([None, 0.2, 0.34, 0.5]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_label_judges_once_and_folds_nest(per_class: list[int], count: int, validation: float, seed: int) -> None:
    split = divided(per_class, validation, seed=seed)
    parts = folding.folds_of(split, count, seed)
    whole = split.budget()
    asked = np.concatenate([part.validation.index for part in parts])
    assert sorted(asked) == sorted(whole.index), "every label judges, and once"
    inside = set(split.validation.index.tolist())
    for part in parts:
        assert set(part.labelled.index) == set(whole.index) - set(part.validation.index)
        shown = np.flatnonzero(part.train.label >= 0)
        assert set(shown) == set(part.labelled.index), "a judging label is hidden"
        assert (part.train.label[part.labelled.index] == part.labelled.label).all()
        assert len({int(i) in inside for i in part.validation.index}) == 1, "a fold lies on one side of the search's division"
        assert set(np.unique(part.labelled.label)) == set(range(len(per_class)))
    for side in (True, False):
        sizes = [
            np.bincount(part.validation.label, minlength=len(per_class))
            for part in parts
            if (int(part.validation.index[0]) in inside) == side
        ]
        assert (np.ptp(sizes, axis=0) <= 1).all(), "of every class the same in every fold, but for one"
        assert np.ptp(np.sum(sizes, axis=1)) <= 1


def test_of_two_folds_the_first_is_what_the_search_validates_on() -> None:
    split = divided([10, 10])
    first, second = folding.folds_of(split, 2, 3)
    assert set(first.validation.index) == set(split.validation.index)
    assert set(second.validation.index) == set(split.labelled.index)


def test_numbers_of_folds_follow_the_share_that_validates() -> None:
    assert folding.fold_counts(divided([20, 20])) == (2, 4)
    assert folding.fold_counts(divided([20, 20], validation=0.2)) == (4, 5)
    assert folding.fold_counts(divided([3, 20], validation=0.2)) == (4, 5), "a fold may lack a class that has few labels"
    assert folding.fold_counts(divided([40, 40], validation=0.05)) == (5,), "most learn from most labels"


def test_more_folds_than_labels_of_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"selection\.folds must be at most the labels of every class, 4 of class 0, got 5"):
        folding.folds_of(divided([4, 20]), 5, 0)


def test_groups_stay_whole() -> None:
    split = divided([40, 40], groups=12)
    for count in folding.fold_counts(split):
        group = split.labelled.data.group
        assert group is not None
        for part in folding.folds_of(split, count, 0):
            assert not set(group[part.validation.index]) & set(group[part.labelled.index])
    with pytest.raises(UserError, match="so few that each has a group of its own, of 2 groups"):
        folding.folds_of(divided([40, 40], groups=4), 5, 0)


def test_the_pool_of_a_division_lacks_the_groups_that_judge() -> None:
    split = divided([60, 60], groups=12, labels=60)
    group = split.labelled.data.group
    assert group is not None
    task = Classification(keep_groups=True)
    assert not task.shares_pool(split)
    for part in (split, *folding.folds_of(split, 2, 0)):
        (shown,) = task.divisions(part)
        position = shown.train.position
        assert position is not None
        assert set(position) == set(np.flatnonzero(~np.isin(group, group[part.validation.index]))), "labelled or not"
        assert (shown.train.label == part.train.label[position]).all()
        assert set(position[shown.train.label >= 0]) == set(part.labelled.index)
        rows = torch.arange(len(position))
        assert torch.equal(shown.train.images.take(rows), split.train.images.take(torch.from_numpy(position)))
        truth = task.truth(part, shown.train)
        assert truth is None or not ((truth >= 0) & (shown.train.label >= 0)).any()
    assert len(task.final_data(split)) == len(split.train), "a refit sees the whole pool"
    assert task.refits(split, CATALOGUE["simclr"]), "which a training that reads no labels has not seen either"


def test_a_fold_column_that_parts_a_group_is_refused() -> None:
    data = divided([24, 24], groups=6).labelled.data
    assert data.group is not None
    fold = np.where(data.group < 2, 0, 1 + np.arange(48) % 2)
    parted = budget.split(Source(dataclasses.replace(data, fold=fold)), test=data, keep_groups=False)
    assert folding.fold_counts(parted) == (3,)
    parted = dataclasses.replace(parted, unit=data.group)
    with pytest.raises(UserError, match=r"keep_groups allows no group in two folds, but by the fold column \d are, the first"):
        folding.fold_counts(parted)


def test_a_fold_column_is_kept() -> None:
    split = divided([12, 12])
    fold = np.arange(24) % 3
    data = dataclasses.replace(split.labelled.data, fold=fold)
    own = budget.split(Source(data), test=split.test.data if split.test else None)
    assert set(own.validation.index) == set(np.flatnonzero(fold == 0))
    assert folding.fold_counts(own) == (3,)
    for number, part in enumerate(folding.folds_of(own, 3, 0)):
        assert set(part.validation.index) == set(np.flatnonzero(fold == number))
    with pytest.raises(UserError, match=r"selection\.folds is what the data's fold column says, 3, got 2"):
        folding.folds_of(own, 2, 0)


def test_fewer_labels_of_every_class_for_the_learning_curve() -> None:
    split = divided([16, 8])
    half = folding.thinned(split, 0.5, 0)
    assert np.bincount(half.labelled.label).tolist() == [4, 2]
    assert set(half.labelled.index) < set(split.labelled.index)
    assert set(np.flatnonzero(half.train.label >= 0)) == set(half.labelled.index)
    assert half.validation is split.validation
    assert np.bincount(folding.thinned(split, 0.01, 0).labelled.label).tolist() == [1, 1]
