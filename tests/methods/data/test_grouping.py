"""Divisions that keep groups whole: nothing straddles, classes come close to their shares, seeded; errors name the class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.data.budget import split
from methods.data.grouping import divided_by_group, kept_together
from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Source
from methods.data.views import join
from methods.tasks import Classification
from methods.tasks.testing import check_task
from search_spaces.domains import UserError


def patients(groups: int = 24, most: int = 9, classes: int = 3, mixed: bool = True, seed: int = 0) -> ImageSet:
    """Distinct images of 4 x 4; patients have 1 to ``most`` images each, of one class or of several."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, groups)
    group = np.repeat(np.arange(groups), sizes).astype(np.int64)
    label = rng.integers(0, classes, len(group)) if mixed else group % classes
    label[: 4 * classes] = np.tile(np.arange(classes), 4)  # every class occurs
    array = np.zeros((len(group), 4, 4, 1), dtype=np.uint8)
    array[:, 0, 0, 0], array[:, 0, 1, 0] = np.arange(len(group)) // 256, np.arange(len(group)) % 256
    names = tuple(f"{i}.png" for i in range(len(group)))
    return ImageSet(
        ArrayImages(array), label.astype(np.int64), tuple(f"c{k}" for k in range(classes)), group,
        tuple(f"p{g}" for g in range(groups)), names=names,
    )  # fmt: skip


def groups_of(part: LabelledSubset) -> set[str]:
    assert part.data.group is not None
    return {part.data.groups[g] for g in part.data.group[part.index] if g >= 0}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), data_seed=st.integers(0, 50), mixed=st.booleans())
def test_no_group_stands_on_both_sides(seed: int, data_seed: int, mixed: bool) -> None:
    data = patients(seed=data_seed, mixed=mixed, groups=30)
    part = split(Source(data), keep_groups=True, seed=seed)
    assert part.test is not None
    train, validation, test = (groups_of(p) for p in (part.labelled, part.validation, part.test))
    assert not train & validation
    assert not test & (train | validation)
    assert part.holdout
    # Every label is somewhere, and each part knows every class.
    assert len(part.labelled) + len(part.validation) + len(part.test) == len(data)
    for each in (part.labelled, part.validation, part.test):
        assert len(np.unique(each.label)) == 3
    again = split(Source(data), keep_groups=True, seed=seed)
    assert again.test is not None
    assert (again.labelled.index == part.labelled.index).all()
    assert (again.test.data.label == part.test.data.label).all()


def test_class_shares_come_as_close_as_the_groups_allow() -> None:
    data = patients(groups=60, most=8, classes=4)
    unit = kept_together(data)
    for share in (0.2, 0.5):
        inside = divided_by_group(data.label, unit, data.classes, share, 3, "to try")
        found = np.bincount(data.label[inside], minlength=4) / np.bincount(data.label, minlength=4)
        assert np.abs(found - share).max() < 0.03
        draws = {divided_by_group(data.label, unit, data.classes, share, s, "to try").tobytes() for s in range(4)}
        assert len(draws) == 4, "other seeds divide otherwise"
    # One image a group: as exact as it can be.
    single = divided_by_group(np.repeat([0, 1], 50), np.arange(100), ("a", "b"), 0.2, 0, "to try")
    assert np.bincount(np.repeat([0, 1], 50)[single]).tolist() == [10, 10]


def test_a_large_group_is_not_forced_in() -> None:
    """Three groups of 90, 5 and 5 images: a fifth is nearest to the two small ones, or one of them."""
    label, unit = np.zeros(100, dtype=np.int64), np.repeat([0, 1, 2], [90, 5, 5])
    for seed in range(5):
        inside = divided_by_group(label, unit, ("a",), 0.2, seed, "to try")
        assert set(unit[inside]) == {1, 2}


def test_exact_copies_count_as_one_group() -> None:
    data = patients(groups=4, most=3, classes=1)
    array = data.images.array.copy()  # type: ignore[attr-defined]
    assert data.group is not None
    first, last = np.flatnonzero(data.group == 0)[0], np.flatnonzero(data.group == 3)[0]
    array[last] = array[first]
    unit = kept_together(dataclasses.replace(data, images=ArrayImages(array)))
    assert unit[first] == unit[last]
    assert len(np.unique(unit)) == 3
    assert len(np.unique(kept_together(data))) == 4
    assert (unit[data.group == 0] == unit[last]).all()


def test_unlabelled_images_of_a_held_out_group_leave_the_pool() -> None:
    data = patients(groups=30)
    label = data.label.copy()
    label[::3] = -1
    part = split(Source(dataclasses.replace(data, label=label)), keep_groups=True, seed=1)
    assert part.test is not None
    assert part.train.group is not None
    assert not {data.groups[g] for g in part.train.group} & groups_of(part.test)
    assert (part.train.label < 0).sum() > len(part.validation), "other unlabelled images stay"
    plain = split(Source(dataclasses.replace(data, label=label)), seed=1)
    assert len(part.train) < len(plain.train)


def test_groups_that_are_marked_to_validate_do_and_are_never_held_out() -> None:
    data = patients(groups=40)
    assert data.group is not None
    validates = np.isin(data.group, [3, 8, 14, 20, 31])
    part = split(Source(dataclasses.replace(data, validates=validates)), keep_groups=True, seed=2)
    assert groups_of(part.validation) == {"p3", "p8", "p14", "p20", "p31"}
    assert part.test is not None
    assert not groups_of(part.test) & (groups_of(part.labelled) | groups_of(part.validation))


def test_a_number_of_labels_draws_as_before_and_validates_by_group() -> None:
    train, test = patients(groups=80, seed=1), patients(groups=9, seed=2)
    test = dataclasses.replace(test, groups=tuple(f"other {name}" for name in test.groups))
    kept = split(Source(train), test=test, labels=60, keep_groups=True, seed=4)
    plain = split(Source(train), test=test, labels=60, seed=4)
    assert set(kept.budget().index) == set(plain.budget().index)
    assert not groups_of(kept.labelled) & groups_of(kept.validation)
    assert groups_of(plain.labelled) & groups_of(plain.validation), "or the test shows nothing"
    assert abs(len(kept.validation) - 30) <= 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dataclasses.replace(patients(), group=None, groups=()), "keep_groups needs data with groups"),
        (
            dataclasses.replace(patients(), group=np.where(np.arange(len(patients())) % 50 == 7, -1, patients().group)),
            "have none, first 7.png; fill the group column",
        ),
        (
            join([patients(mixed=False), dataclasses.replace(patients(groups=1, classes=1), classes=("odd",))]),
            "keep_groups needs 3 groups of every class, a test, a validation and a training one (give a test set to need only"
            " two), but odd lies in a single group",
        ),
    ],
)
def test_groups_that_cannot_be_kept_are_refused(data: ImageSet, words: str) -> None:
    with pytest.raises(UserError) as caught:
        split(Source(data), keep_groups=True)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_that_hang_together_are_refused() -> None:
    """Each class lies in two of three groups, so that no division has all classes on both sides."""
    label, unit = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    with pytest.raises(UserError, match="cannot divide these groups"):
        divided_by_group(label, unit, ("a", "b", "c"), 0.5, 0, "to try")


def test_a_test_set_that_shows_a_group_of_the_training_data_is_refused() -> None:
    with pytest.raises(UserError, match="24 groups of the test set are in the training data too, first p0"):
        split(Source(patients()), test=patients(seed=1), keep_groups=True)


def test_the_task_keeps_its_contract() -> None:
    part = check_task(Classification(keep_groups=True), Source(big(patients(groups=40))))
    assert not groups_of(part.labelled) & groups_of(part.validation)


def big(data: ImageSet) -> ImageSet:
    """The same in 8 x 8, which an encoder takes."""
    images = data.images.take(torch.arange(len(data))).permute(0, 2, 3, 1).numpy()
    return dataclasses.replace(data, images=ArrayImages(np.ascontiguousarray(images.repeat(2, 1).repeat(2, 2))))
