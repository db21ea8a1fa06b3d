"""The label budget: which labels a classification study may use, which of them validate, and what is left for the test.

Rules:

- **Test.** A test set of its own, or a stratified seeded share of the labelled images (0.2 unless stated), taken before
  anything else; those images leave the training pool altogether.
- **Budget.** ``labels`` of the remaining labels, drawn as equal over the classes as possible: every class gets the whole
  part, a seeded choice of classes one more; a class that has too few gives all and the others make up for it. ``all``
  takes every label in its natural proportion. Every other label is hidden, from methods and from everyone else.
- **Validation** is part of the budget: half of it below 500 labels, a fifth from 500 on, stratified, and never more than
  trains (Oliver et al. 2018, arXiv:1804.09170: a larger one chooses better than its user could). Every class keeps at least
  one label on either side, so every class needs two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from methods.batch import seed_of
from methods.data.captions import encode, vocabulary
from methods.data.records import ImageSet, IntArray, LabelledSubset, Source, Split, TrainData, channel_statistics
from methods.data.views import renumber, select
from search_spaces.domains import UserError

HOLDOUT = 0.2
FEW_LABELS = 500
LARGEST_VALIDATION = 0.5
LARGEST_MISMATCH = 0.75
KNOWN_CLASSES = 0.6


def split(
    source: Source,
    *,
    labels: int | Literal["all"] = "all",
    test: float | Source | ImageSet | None = None,
    validation: float | None = None,
    imbalance: float = 1.0,
    mismatch: float | None = None,
    seed: int = 0,
) -> Split:
    """Divides a source for classification by the rules of the module's docstring.

    Args:
        source: the data; its own test set is used unless ``test`` says otherwise.
        labels: how many labels the study may use, validation included, or ``all`` that the data has.
        test: a test set, or the share of labelled images to hold out; None for the source's own, else a share of 0.2.
        validation: share of the budget that validates, at most half; None for the rule above.
        imbalance: labels of the most frequent class over those of the rarest, geometric in between (needs a number of
            labels); which class is frequent is drawn. Validation is drawn from the same labels; the pool and the test stay
            as they are.
        mismatch: share, 0 to 0.75, of the unlabelled pool whose class has no labels (needs a number of labels). 60% of the
            classes, drawn, are then the task and the test; the pool has the same size for every mismatch, 0 included, so
            that settings can be compared. Images whose class nobody knows are left out. None leaves pool and classes alone.
        seed: of all draws.
    Raises:
        UserError: one class, too few images or labels for the budget, a test set of other classes or another shape.
    """
    check(labels, test, validation, imbalance, mismatch)
    data, tested, holdout = _take_test(source, test, seed)
    if mismatch is not None:
        # What is left labelled is exactly the budget.
        data, tested = _mismatch(data, tested, mismatch, labels, imbalance, holdout, seed)
        labels, imbalance = "all", 1.0
    chosen = _draw(data, labels, imbalance, holdout, seed)
    share = validation if validation is not None else (0.5 if len(chosen) < FEW_LABELS else 0.2)
    validates = stratified(data.label[chosen], len(data.classes), share, seed_of(seed, "validation"))
    train_index, validation_index = chosen[~validates], chosen[validates]
    visible = np.full(len(data), -1, dtype=np.int64)
    visible[train_index] = data.label[train_index]
    within = np.full(len(data), -1, dtype=np.int64)
    within[chosen] = data.label[chosen]
    seen = dataclasses.replace(data, label=within)
    return Split(
        train=train_data(data, visible),
        labelled=LabelledSubset(seen, train_index, data.label[train_index]),
        validation=LabelledSubset(seen, validation_index, data.label[validation_index]),
        test=tested,
        holdout=holdout,
    )


def train_data(data: ImageSet, label: IntArray) -> TrainData:
    """What a method may see: the images with these labels (-1 hidden), and the captions that do not tell a hidden label."""
    mean, std = channel_statistics(data.images)
    words = vocabulary(data.captions)
    return TrainData(
        data.images, label, len(data.classes), mean, std, data.group, caption_tokens(data, label, words), data.flip,
        names=data.classes, words=words, caption_labels=data.caption_labels,
    )  # fmt: skip


def caption_tokens(data: ImageSet, label: IntArray, words: Sequence[str]) -> IntArray | None:
    """int64 [N, L]: the captions that a method may see with these labels (-1 hidden); None where the data has none.

    Args:
        words: the captions' vocabulary, into which tokens count.
    """
    if not data.captions:
        return None
    tokens = encode(data.captions, words)
    return np.where((label >= 0)[:, None], tokens, 0) if data.caption_labels else tokens


def balanced(available: IntArray, n: int, seed: int) -> IntArray:
    """int64 [K] that sums to n <= sum(available): as equal as the classes allow, seeded where one is left over."""
    quota = np.zeros_like(available)
    random = np.random.default_rng(seed)
    while (left := n - int(quota.sum())) > 0:
        open_ = np.flatnonzero(quota < available)
        if left < len(open_):
            quota[random.permutation(open_)[:left]] += 1
        else:
            quota[open_] = np.minimum(available[open_], quota[open_] + left // len(open_))
    return quota


def stratified(label: IntArray, classes: int, share: float, seed: int) -> np.ndarray:
    """bool [N]: ``share`` of every class, rounded so that the total fits; at least one of it and never all.

    Of an odd number of images half is the smaller half, so that half the labels never validate more than train.
    """
    random = np.random.default_rng(seed)
    count = np.bincount(label, minlength=classes)
    present = count > 0
    exact = count * share
    take = np.where(present, np.clip(np.floor(exact).astype(np.int64), 1, np.maximum(count - 1, 1)), 0)
    short = math.ceil(share * len(label) - 0.5) - int(take.sum())
    if short > 0:
        room = np.flatnonzero(present & (take < count - 1))
        # Largest remainders first, ties by lot.
        order = room[np.lexsort((random.random(len(room)), -(exact - take)[room]))]
        take[order[:short]] += 1
    chosen = np.zeros(len(label), dtype=bool)
    for k in np.flatnonzero(present):
        chosen[random.permutation(np.flatnonzero(label == k))[: take[k]]] = True
    return chosen


def check(labels: object, test: object, validation: float | None, imbalance: float, mismatch: float | None) -> None:
    """What can be said of these settings before the data is there. Raises UserError."""
    if labels != "all" and (isinstance(labels, bool) or not isinstance(labels, int) or labels < 4):
        raise UserError(
            f"labels must be all or a whole number from 4, 2 for each of 2 classes, got {labels!r}; all uses every label"
        )
    if isinstance(test, bool) or (isinstance(test, int | float) and not 0 < test < 1):
        raise UserError(f"a test share must lie between 0 and 1, got {test}; {HOLDOUT} is the default")
    if validation is not None and not 0 < validation <= LARGEST_VALIDATION:
        raise UserError(
            f"validation must be a share above 0 and at most {LARGEST_VALIDATION}, no larger than what trains, "
            f"got {validation}; leave it out for the rule"
        )
    if not 1 <= imbalance < math.inf:
        raise UserError(
            f"imbalance must be a ratio of at least 1 (balanced), got {imbalance}; 10 gives one class ten times the labels of"
            " another"
        )
    if imbalance > 1 and labels == "all":
        raise UserError("imbalance needs a number of labels, got labels: all; set labels to a number")
    if mismatch is not None and not 0 <= mismatch <= LARGEST_MISMATCH:
        raise UserError(f"mismatch must lie between 0 and {LARGEST_MISMATCH}, got {mismatch}; 0.5 is a common choice")
    if mismatch is not None and labels == "all":
        raise UserError("mismatch needs a number of labels, got labels: all; set labels to a number")


def _take_test(source: Source, test: float | Source | ImageSet | None, seed: int) -> tuple[ImageSet, LabelledSubset, bool]:
    data = _labelled_classes(source.train)
    given = test.train if isinstance(test, Source) else test
    own = source.test if given is None else given
    if isinstance(own, ImageSet):
        return data, test_set(own, data), False
    share = HOLDOUT if own is None else float(own)
    known = np.flatnonzero(data.label >= 0)
    _enough_per_class(data, known, 3, "a test, a validation and a training image (give a test set to need only two)")
    held = np.zeros(len(data), dtype=bool)
    held[known[stratified(data.label[known], len(data.classes), share, seed_of(seed, "holdout"))]] = True
    tested = select(data, np.flatnonzero(held))
    return select(data, np.flatnonzero(~held)), LabelledSubset(tested, np.arange(len(tested)), tested.label), True


def _labelled_classes(data: ImageSet) -> ImageSet:
    """The data with the classes that have labelled images."""
    found = np.unique(data.label[data.label >= 0])
    if len(found) == 0:
        raise UserError(
            f"classification needs labelled images, got {len(data)} images without a label; sort them into class folders"
        )
    if len(found) == 1:
        raise UserError(
            f"classification needs at least 2 classes, got one, {data.classes[found[0]]}; add images of another class"
        )
    return data if len(found) == len(data.classes) else renumber(data, [data.classes[k] for k in found])


def test_set(tested: ImageSet, data: ImageSet) -> LabelledSubset:
    """The labelled images of a test set, with labels that count into the training classes.

    Raises:
        UserError: another shape, no labels, or classes that the training data lacks.
    """
    if tested.images.shape != data.images.shape:
        (c, h, w), (d, i, j) = tested.images.shape, data.images.shape
        raise UserError(
            f"test images must have the training images' shape, {j}x{i} with {d} channels, got {w}x{h} with {c}; set size"
        )
    new = [tested.classes[k] for k in np.unique(tested.label) if k >= 0 and tested.classes[k] not in data.classes]
    if new:
        raise UserError(
            f"every test class must be among the {len(data.classes)} training classes, but {len(new)} are not, first {new[0]};"
            " give both the same class names"
        )
    same = renumber(tested, data.classes)
    index = np.flatnonzero(same.label >= 0)
    if not len(index):
        raise UserError(
            f"a test set must have labels, but none of its {len(tested)} images has one; sort them into class folders"
        )
    return LabelledSubset(same, index, same.label[index])


def _draw(data: ImageSet, labels: int | Literal["all"], imbalance: float, holdout: bool, seed: int) -> IntArray:
    """int64 [n], sorted: the positions whose labels the study may use."""
    label, classes, names = data.label, len(data.classes), data.classes
    known = np.flatnonzero(label >= 0)
    available = np.bincount(label[known], minlength=classes)
    if available.min() < 2:
        k = int(available.argmin())
        raise UserError(
            f"every class needs 2 labels, one to train and one to validate, but {names[k]} has {available[k]}; add images"
        )
    if labels == "all":
        return known
    if labels > len(known):
        left = " that the test share leaves" if holdout else ""
        raise UserError(f"labels must be at most the {len(known)} labelled images{left}, got {labels}; lower it or use all")
    if labels < 2 * classes:
        raise UserError(
            f"labels must be at least 2 for each of {classes} classes, {2 * classes}, got {labels}; raise it to validate"
        )
    draw = seed_of(seed, "labels")
    quota = _geometric(available, labels, imbalance, draw) if imbalance > 1 else balanced(available, labels, draw)
    random = np.random.default_rng([draw, 1])
    return np.sort(np.concatenate([random.permutation(np.flatnonzero(label == k))[: quota[k]] for k in range(classes)]))


def _geometric(available: IntArray, n: int, ratio: float, seed: int) -> IntArray:
    """int64 [K] that sums to n: ratio^(-i/(K-1)) for the i-th class of a drawn order, at least 2 each."""
    classes = len(available)
    rank = np.random.default_rng(seed).permutation(classes)
    weight = ratio ** (-rank / (classes - 1))
    exact = n * weight / weight.sum()
    quota = np.maximum(np.floor(exact).astype(np.int64), 2)
    order = np.argsort(-(exact - quota), kind="stable")
    for k in range(n - int(quota.sum())):
        quota[order[k % classes]] += 1
    while quota.sum() > n:
        quota[int(quota.argmax())] -= 1
    if (quota > available).any():
        k = int((quota - available).argmax())
        raise UserError(
            f"an imbalance of {ratio:g} with {n} labels needs {quota[k]} of one class, which has {available[k]}; lower either"
        )
    return quota


def _mismatch(
    data: ImageSet,
    tested: LabelledSubset,
    mismatch: float,
    labels: int | Literal["all"],
    imbalance: float,
    holdout: bool,
    seed: int,
) -> tuple[ImageSet, LabelledSubset]:
    """The task cut down to 60% of the classes, with an unlabelled pool of which a share ``mismatch`` is of the others."""
    classes = len(data.classes)
    if classes < 3:
        raise UserError(f"mismatch needs at least 3 classes, 2 of them the task, got {classes}; leave mismatch out")
    random = np.random.default_rng(seed_of(seed, "mismatch"))
    known = np.sort(random.permutation(classes)[: min(classes - 1, max(2, round(KNOWN_CLASSES * classes)))])
    names = [data.classes[k] for k in known]
    task = renumber(data, names)
    inside, outside = np.flatnonzero(task.label >= 0), np.flatnonzero((data.label >= 0) & (task.label < 0))
    # The budget's own images stay whatever the mismatch; the pool beside them is as large as the largest mismatch allows.
    budget = _draw(task, labels, imbalance, holdout, seed)
    labelled = np.full(len(data), -1, dtype=np.int64)
    labelled[budget] = task.label[budget]
    spare = np.setdiff1d(inside, budget)
    pool = min(len(spare), int(len(outside) / LARGEST_MISMATCH))
    foreign = round(mismatch * pool)
    chosen = [budget, random.permutation(spare)[: pool - foreign], random.permutation(outside)[:foreign]]
    kept = select(dataclasses.replace(task, label=labelled), np.sort(np.concatenate(chosen)))
    test_task = renumber(tested.data, names)
    index = tested.index[test_task.label[tested.index] >= 0]
    return kept, LabelledSubset(test_task, index, test_task.label[index])


def _enough_per_class(data: ImageSet, known: IntArray, need: int, what: str) -> None:
    count = np.bincount(data.label[known], minlength=len(data.classes))
    if count.min() < need:
        k = int(count.argmin())
        raise UserError(f"every class needs {need} labelled images, {what}, but {data.classes[k]} has {count[k]}; add images")
