"""Folds of the label budget: disjoint, whole, stratified, nested in the search's division, groups kept together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.data import budget, folding
from methods.data.records import ArrayImages, ImageSet, Source, Split
from search_spaces.domains import UserError


def divided(per_class: list[int], validation: float | None = None, groups: int = 0, seed: int = 0) -> Split:
    """A split of distinct images; all their labels are the budget, and a test set of its own lies beside them."""
    label = np.repeat(np.arange(len(per_class)), per_class)
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (len(label), 8, 8, 1), dtype=np.uint8)
    group = random.integers(0, groups, len(label)) if groups else None
    names = tuple(f"class {k}" for k in range(len(per_class)))
    data = ImageSet(ArrayImages(images), label, names, group, tuple(f"g{k}" for k in range(groups)))
    test = ImageSet(ArrayImages(255 - images[:: len(images) // 9]), label[:: len(images) // 9], names)
    return budget.split(Source(data), test=test, validation=validation, keep_groups=groups > 0, seed=seed)


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
