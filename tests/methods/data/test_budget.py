"""The label budget: balanced, seeded, disjoint, and nothing but the budget is visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.data.budget import split, train_data
from methods.data.drawing import balanced, stratified
from methods.data.records import ArrayImages, ImageSet, Source, Split
from search_spaces.domains import UserError


def made(counts: list[int], unlabelled: int = 0, seed: int = 0) -> ImageSet:
    """Images whose first pixel pair holds their number, with this many of every class."""
    label = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.full(unlabelled, -1)]).astype(np.int64)
    label = np.random.default_rng(seed).permutation(label)
    array = np.zeros((len(label), 4, 4, 1), dtype=np.uint8)
    array[:, 0, 0, 0], array[:, 0, 1, 0] = np.arange(len(label)) // 256, np.arange(len(label)) % 256
    return ImageSet(ArrayImages(array), label, tuple(f"c{k}" for k in range(len(counts))))


def ids(part: Split, which: str) -> set[int]:
    """The numbers of the images in a part of a split."""
    images = {
        "pool": lambda: part.train.images.take(torch.arange(len(part.train))),
        "labelled": lambda: part.labelled.data.images.take(torch.from_numpy(part.labelled.index)),
        "validation": lambda: part.validation.data.images.take(torch.from_numpy(part.validation.index)),
        "test": lambda: part.test.data.images.take(torch.from_numpy(part.test.index)),
    }[which]()
    return set((images[:, 0, 0, 0].int() * 256 + images[:, 0, 0, 1].int()).tolist())


counts_of = st.lists(st.integers(3, 40), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(counts_of, st.integers(0, 20), st.integers(0, 10**6), st.data())
def test_a_split_is_balanced_disjoint_seeded_and_sums(
    counts: list[int], unlabelled: int, seed: int, data: st.DataObject
) -> None:
    images = made(counts, unlabelled)
    left = sum(counts) - len(split(Source(images), seed=seed).test)
    n = data.draw(st.integers(2 * len(counts), left))
    part, again = split(Source(images), labels=n, seed=seed), split(Source(images), labels=n, seed=seed)
    # Sums and shares.
    assert len(part.labelled) + len(part.validation) == n
    share = 0.5 if n < 500 else 0.2
    assert abs(len(part.validation) - share * n) <= len(counts)
    assert len(part.validation) <= len(part.labelled)
    assert part.holdout
    # Disjoint, and the test images have left the pool.
    labelled, validation, test, pool = (ids(part, which) for which in ("labelled", "validation", "test", "pool"))
    assert not labelled & validation
    assert not test & pool
    assert labelled | validation <= pool
    assert len(test) + len(pool) == len(images)
    # As equal as possible: a class with fewer than the largest class has given all it has.
    budget = part.budget()
    drawn = np.bincount(budget.label, minlength=len(counts))
    held = np.bincount(part.test.label, minlength=len(counts))
    short = drawn < drawn.max() - 1
    assert (drawn[short] == (np.array(counts) - held)[short]).all()
    # Every class trains, validates and is tested.
    for labels in (part.labelled.label, part.validation.label, part.test.label):
        assert len(np.unique(labels)) == len(counts)
    # The same seed draws the same, and labels are the truth.
    assert (part.labelled.index == again.labelled.index).all()
    truth = images.label
    for which, where in (("labelled", part.labelled), ("validation", part.validation), ("test", part.test)):
        taken = where.data.images.take(torch.from_numpy(where.index))
        numbers = (taken[:, 0, 0, 0].int() * 256 + taken[:, 0, 0, 1].int()).numpy()
        assert (truth[numbers] == where.label).all(), which
    # Methods see the labels of the training part, nobody sees more than the budget.
    assert set(np.flatnonzero(part.train.label >= 0)) == set(part.labelled.index)
    assert (part.train.label[part.labelled.index] == part.labelled.label).all()
    assert set(np.flatnonzero(part.labelled.data.label >= 0)) == set(budget.index)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 10**6), st.data())
def test_balanced_is_the_fairest_quota(available: list[int], seed: int, data: st.DataObject) -> None:
    have = np.array(available)
    n = data.draw(st.integers(0, int(have.sum())))
    quota = balanced(have, n, seed)
    assert quota.sum() == n
    assert (quota <= have).all()
    if n:
        assert (quota[quota < quota.max() - 1] == have[quota < quota.max() - 1]).all()


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.floats(0.05, 0.95), st.integers(0, 10**6))
def test_stratified_keeps_to_the_share(counts: list[int], share: float, seed: int) -> None:
    label = np.repeat(np.arange(len(counts)), counts)
    taken = np.bincount(label[stratified(label, len(counts), share, seed)], minlength=len(counts))
    assert (taken >= 1).all()
    assert (taken < counts).all()
    exact = np.array(counts) * share
    inside = (exact >= 1) & (exact <= np.array(counts) - 1)
    assert (np.abs(taken - exact)[inside] <= 1).all()


def test_every_class_gets_the_remainder_sometimes() -> None:
    images = Source(made([30, 30, 30]), made([1, 1, 1]))
    extra = {int(np.bincount(split(images, labels=10, seed=s).budget().label).argmax()) for s in range(20)}
    assert extra == {0, 1, 2}


def test_all_labels_and_other_shares() -> None:
    source = Source(made([400, 300], unlabelled=50), made([5, 5]))
    part = split(source)
    assert not part.holdout
    assert len(part.train) == 750
    assert len(part.budget()) == 700
    assert len(part.validation) == 140  # a fifth from 500 labels on
    assert len(split(source, labels=250).validation) == 125  # half below
    assert len(split(source, validation=0.1).validation) == 70
    assert len(split(source, test=0.5).test) == 350
    assert split(source, test=0.5).holdout
    assert len(split(source, test=Source(made([7, 8]))).test) == 15


def test_a_test_set_is_matched_by_class_name_and_keeps_only_labelled_images() -> None:
    test = made([3, 4], unlabelled=2)
    swapped = ImageSet(test.images, test.label, ("c1", "c0"))
    part = split(Source(made([10, 10])), test=swapped)
    assert np.bincount(part.test.label).tolist() == [4, 3]
    assert len(part.test) == 7


def test_captions_that_tell_the_class_are_hidden_with_the_label() -> None:
    base = made([10, 10])
    for told in (True, False):
        data = ImageSet(base.images, base.label, base.classes, captions=("a word",) * 20, caption_labels=told)
        part = split(Source(data, made([2, 2])), labels=8)
        assert part.train.tokens is not None
        assert part.train.words == ("a", "word")
        shown = part.train.tokens.any(axis=1)
        assert (shown == ((part.train.label >= 0) if told else np.ones(20, dtype=bool))).all()


def test_train_data_measures_the_pool() -> None:
    data = ImageSet(ArrayImages(np.full((5, 4, 4, 3), 51, np.uint8)), np.zeros(5, np.int64), ("a", "b"))
    train = train_data(data, np.array([0, -1, -1, 1, -1]))
    assert train.mean == pytest.approx((0.2, 0.2, 0.2))
    assert train.classes == 2
    assert train.label.tolist() == [0, -1, -1, 1, -1]


def test_imbalance_is_geometric() -> None:
    source = Source(made([200] * 5), made([2] * 5))
    part = split(source, labels=211, imbalance=10.0, seed=3)
    drawn = np.sort(np.bincount(part.budget().label))
    assert drawn.sum() == 211
    ratios = drawn[1:] / drawn[:-1]
    assert ratios == pytest.approx(10 ** (1 / 4), rel=0.1)
    assert drawn[-1] / drawn[0] == pytest.approx(10, rel=0.1)


def test_mismatch_keeps_labels_and_pool_size() -> None:
    source = Source(made([100] * 10), made([5] * 10))
    parts = {m: split(source, labels=60, mismatch=m, seed=1) for m in (0.0, 0.25, 0.75)}
    labelled = [ids(part, "labelled") for part in parts.values()]
    assert labelled[0] == labelled[1] == labelled[2]
    truth = source.train.label
    known = {int(k) for k in np.unique(truth[list(labelled[0])])}
    assert len(known) == 6
    sizes = set()
    for m, part in parts.items():
        assert part.train.classes == 6
        assert len(part.test) == 30
        pool = ids(part, "pool") - ids(part, "labelled") - ids(part, "validation")
        sizes.add(len(pool))
        foreign = sum(int(truth[i]) not in known for i in pool)
        assert foreign / len(pool) == pytest.approx(m, abs=0.01)
    assert len(sizes) == 1


def test_mismatch_and_imbalance_together() -> None:
    """The labels are imbalanced over the task's classes, the pool is of the size and the mixture that mismatch says."""
    source = Source(made([100] * 10, unlabelled=30), made([5] * 10))
    part = split(source, labels=120, mismatch=0.5, imbalance=8.0, seed=2)
    drawn = np.bincount(part.budget().label)
    assert len(drawn) == part.train.classes == 6
    assert drawn.max() / drawn.min() == pytest.approx(8, rel=0.25)
    truth = source.train.label
    pool = ids(part, "pool") - ids(part, "labelled") - ids(part, "validation")
    task = set(truth[list(ids(part, "labelled"))])
    assert np.mean([truth[i] not in task for i in pool]) == pytest.approx(0.5, abs=0.01)
    assert all(truth[i] >= 0 for i in pool), "an image of unknown class would make the mixture unknown"


@pytest.mark.parametrize("labels", [6, 7, 9, 11, 499, 500])
@pytest.mark.parametrize("validation", [None, 0.5])
def test_validation_is_never_larger_than_what_trains(labels: int, validation: float | None) -> None:
    part = split(Source(made([300, 300, 300]), made([2] * 3)), labels=labels, validation=validation)
    assert len(part.validation) <= len(part.labelled)
    assert len(part.validation) + len(part.labelled) == labels


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([20], {}, ("at least 2 classes", "c0")),
        ([], {}, ("needs labelled images",)),
        ([20, 20], {"labels": 41}, ("at most the 40", "41")),
        ([20, 20], {"labels": 40, "test": 0.2}, ("at most the 32", "test share leaves")),
        ([20, 20], {"labels": 3}, ("from 4", "2 classes", "got 3")),
        ([20, 20, 20], {"labels": 5}, ("3 classes, 6", "got 5")),
        ([20, 1], {}, ("2 labels", "c1 has 1")),
        ([20, 2], {"test": 0.2}, ("3 labelled images", "c1 has 2")),
        ([20, 20], {"labels": "some"}, ("all or a whole number", "some")),
        ([20, 20], {"labels": True}, ("all or a whole number",)),
        ([20, 20], {"test": 1.5}, ("between 0 and 1", "1.5")),
        ([20, 20], {"validation": 0.6}, ("at most 0.5", "got 0.6", "leave it out")),
        ([20, 20], {"validation": float("nan")}, ("at most 0.5", "got nan")),
        ([20, 20], {"imbalance": 0.5, "labels": 8}, ("at least 1",)),
        ([20, 20], {"imbalance": float("inf"), "labels": 8}, ("at least 1", "got inf")),
        ([20, 20], {"imbalance": 2.0}, ("number of labels",)),
        ([20, 20, 20], {"mismatch": 0.5}, ("number of labels", "all")),
        ([20, 20], {"imbalance": 50.0, "labels": 38}, ("lower either",)),
        ([20, 20], {"mismatch": 0.9, "labels": 8}, ("0.75", "0.9")),
        ([20, 20], {"mismatch": 0.5, "labels": 8}, ("3 classes", "got 2")),
        ([20, 20], {"test": made([1, 1, 1])}, ("c2", "training classes")),
        ([20, 20], {"test": made([0, 0], unlabelled=3)}, ("must have labels",)),
        (
            [20, 20],
            {"test": ImageSet(ArrayImages(np.zeros((2, 5, 5, 1), np.uint8)), np.array([0, 1]), ("c0", "c1"))},
            ("4x4", "5x5"),
        ),
    ],
)
def test_what_cannot_be_split(counts: list[int], options: dict[str, object], words: tuple[str, ...]) -> None:
    source = Source(made(counts, unlabelled=5), made([2] * len(counts)) if counts else None)
    with pytest.raises(UserError) as caught:
        split(source, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
