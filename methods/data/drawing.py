"""Seeded draws of labels: balanced, stratified, imbalanced, or with a pool of other classes."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from methods.batch import seed_of
from methods.data.records import ImageSet, IntArray, LabelledSubset
from methods.data.views import renumber, select
from search_spaces.domains import UserError

LARGEST_MISMATCH = 0.75
KNOWN_CLASSES = 0.6


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


def draw_labels(data: ImageSet, labels: int | Literal["all"], imbalance: float, holdout: bool, seed: int) -> IntArray:
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


def draw_mismatch(
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
    budget = draw_labels(task, labels, imbalance, holdout, seed)
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
