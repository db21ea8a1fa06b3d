"""The label budget: which labels a classification study may use, which of them validate, and what is left for the test.

Rules:

- **Test.** A test set of its own, or a stratified seeded share of the labelled images (0.2 unless stated), taken before
  anything else; those images leave the training pool altogether.
- **Budget.** ``labels`` of the remaining labels, drawn as equal over the classes as possible: every class gets the whole
  part, a seeded choice of classes one more; a class that has too few gives all and the others make up for it. ``all``
  takes every label in its natural proportion. Every other label is hidden, from methods and from everyone else.
- **Validation** is part of the budget: half of it below 500 labels, a fifth from 500 on, stratified, and never more than
  trains (Oliver et al. 2018, arXiv:1804.09170: a larger one chooses better than its user could). Every class keeps at least
  one label on either side, so every class needs two. It is what a ``split`` column marks; with a ``fold`` column the first
  fold. See ``methods.data.folding`` for the folds that judge finalists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.batch import seed_of
from methods.data.captions import encode, vocabulary
from methods.data.drawing import LARGEST_MISMATCH, draw_labels, draw_mismatch, stratified
from methods.data.grouping import divided_by_group, kept_together, straddling
from methods.data.records import ImageSet, IntArray, LabelColumn, LabelledSubset, Source, Split, TrainData, channel_statistics
from methods.data.views import renumber, select
from search_spaces.domains import UserError

HOLDOUT = 0.2
FEW_LABELS = 500
LARGEST_VALIDATION = 0.5


def split(
    source: Source,
    *,
    labels: int | Literal["all"] = "all",
    test: float | Source | ImageSet | None = None,
    validation: float | None = None,
    imbalance: float = 1.0,
    mismatch: float | None = None,
    keep_groups: bool = False,
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
        keep_groups: no group stands on both sides of the holdout or of the validation part.
        seed: of all draws.
    Raises:
        UserError: one class, too few images or labels for the budget, a test set of other classes or another shape.
    """
    check(labels, test, validation, imbalance, mismatch, keep_groups)
    unit = kept_together(source.train) if keep_groups else None
    data, tested, holdout, unit = _take_test(source, test, seed, unit)
    if mismatch is not None:
        # What is left labelled is exactly the budget.
        data, tested = draw_mismatch(data, tested, mismatch, labels, imbalance, holdout, seed)
        labels, imbalance = "all", 1.0
    chosen = draw_labels(data, labels, imbalance, holdout, seed)
    validates = _validates(data, chosen, validation, unit, seed)
    train_index, validation_index = chosen[~validates], chosen[validates]
    visible = np.full(len(data), -1, dtype=np.int64)
    visible[train_index] = data.label[train_index]
    within = np.full(len(data), -1, dtype=np.int64)
    within[chosen] = data.label[chosen]
    seen = dataclasses.replace(data, label=within, targets=shown(data, within))
    return Split(
        train=train_data(data, visible),
        labelled=LabelledSubset(seen, train_index, data.label[train_index]),
        validation=LabelledSubset(seen, validation_index, data.label[validation_index]),
        test=tested,
        holdout=holdout,
        unit=unit,
    )


def _validates(
    data: ImageSet, chosen: IntArray, validation: float | None, unit: IntArray | None, seed: int
) -> NDArray[np.bool_]:
    """bool [n]: which of the budget's images, at ``chosen`` int64 [n], validate."""
    label, draw = data.label[chosen], seed_of(seed, "validation")
    share = validation if validation is not None else (0.5 if len(chosen) < FEW_LABELS else 0.2)
    if data.validates is not None and data.validates.any():
        return _marked(data, chosen, validation, unit)
    if data.fold is not None and validation is None and (data.fold[chosen] >= 0).all():
        return _marked(dataclasses.replace(data, validates=data.fold == data.fold[chosen].min()), chosen, None, unit)
    if unit is None:
        return stratified(label, len(data.classes), share, draw)
    return divided_by_group(label, unit[chosen], data.classes, share, draw, "one to train and one to validate")


def _marked(data: ImageSet, chosen: IntArray, validation: float | None, unit: IntArray | None) -> NDArray[np.bool_]:
    """``data.validates`` of the budget's images, where it can be kept."""
    assert data.validates is not None
    if validation is not None:
        raise UserError(f"validation is what the data's split column marks, got a share of {validation}; leave one of them out")
    validates = data.validates[chosen]
    for part, rows in (("train", ~validates), ("validate", validates)):
        count = np.bincount(data.label[chosen][rows], minlength=len(data.classes))
        if count.min() < 1:
            name = data.classes[int(count.argmin())]
            raise UserError(
                f"every class needs a label to train and one to validate, but by the split or fold column none of the"
                f" {len(chosen)} labels is one of {name} to {part}; raise labels, or leave the column out"
            )
    if unit is not None:
        both = straddling(unit[chosen], ~validates, validates)
        if len(both):
            raise UserError(
                f"keep_groups allows no group on both sides, but by the split or fold column {len(both)} images validate whose"
                f" group trains{_of_group(data, chosen[both[0]])}; correct the column, or leave keep_groups out"
            )
    return validates


def _of_group(data: ImageSet, position: int) -> str:
    assert data.group is not None, "units were made of groups"
    return f", first of group {data.groups[data.group[position]]}" if data.group[position] >= 0 else ""


def train_data(data: ImageSet, label: IntArray) -> TrainData:
    """What a method may see: the images with these labels (-1 hidden), and the captions that do not tell a hidden label."""
    mean, std = channel_statistics(data.images)
    words = vocabulary(data.captions)
    return TrainData(
        data.images, label, len(data.classes), mean, std, data.group, caption_tokens(data, label, words), data.flip,
        names=data.classes, words=words, caption_labels=data.caption_labels, targets=shown(data, label),
    )  # fmt: skip


def relabelled(train: TrainData, data: ImageSet, label: IntArray) -> TrainData:
    """The same images with other labels to be seen, and the captions and further labels that go with them.

    Args:
        train: made from ``data``.
        label: int64 [N], -1 hidden.
    """
    return dataclasses.replace(train, label=label, tokens=caption_tokens(data, label, train.words), targets=shown(data, label))


def shown(data: ImageSet, label: IntArray) -> tuple[LabelColumn, ...]:
    """The further label columns, hidden where ``label`` int64 [N] is."""
    return tuple(column.shown(label >= 0) for column in data.targets)


def caption_tokens(data: ImageSet, label: IntArray, words: Sequence[str]) -> IntArray | None:
    """int64 [N, L]: the captions that a method may see with these labels (-1 hidden); None where the data has none.

    Args:
        words: the captions' vocabulary, into which tokens count.
    """
    if not data.captions:
        return None
    tokens = encode(data.captions, words)
    return np.where((label >= 0)[:, None], tokens, 0) if data.caption_labels else tokens


def check_test(test: object) -> None:
    """Raises UserError where ``test`` is a share that cannot be."""
    if isinstance(test, bool) or (isinstance(test, int | float) and not 0 < test < 1):
        raise UserError(f"a test share must lie between 0 and 1, got {test}; {HOLDOUT} is the default")


def check(
    labels: object,
    test: object,
    validation: float | None,
    imbalance: float,
    mismatch: float | None,
    keep_groups: bool = False,
) -> None:
    """What can be said of these settings before the data is there. Raises UserError."""
    if labels != "all" and (isinstance(labels, bool) or not isinstance(labels, int) or labels < 4):
        raise UserError(
            f"labels must be all or a whole number from 4, 2 for each of 2 classes, got {labels!r}; all uses every label"
        )
    check_test(test)
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
    if mismatch is not None and keep_groups:
        raise UserError(f"mismatch draws images one by one, got {mismatch} beside keep_groups; leave one of them out")


def _take_test(
    source: Source, test: float | Source | ImageSet | None, seed: int, unit: IntArray | None
) -> tuple[ImageSet, LabelledSubset, bool, IntArray | None]:
    """The training images, the test, whether it was held out, and the ``unit`` int64 [N] of the training images."""
    data = _labelled_classes(source.train)
    given = test.train if isinstance(test, Source) else test
    own = source.test if given is None else given
    if isinstance(own, ImageSet):
        if unit is not None:
            _refuse_shared_groups(data, own)
        return data, test_set(own, data), False, unit
    share = HOLDOUT if own is None else float(own)
    draw = seed_of(seed, "holdout")
    # What the data marks to validate is never held out, nor what must stay with it.
    marked = np.zeros(len(data), dtype=bool) if data.validates is None else data.validates
    if unit is not None:
        marked = np.isin(unit, unit[marked])
    known = np.flatnonzero((data.label >= 0) & ~marked)
    if unit is not None:
        what = "a test, a validation and a training one (give a test set to need only two)"
        chosen = divided_by_group(data.label[known], unit[known], data.classes, share, draw, what, leave=2)
        inside = np.isin(unit, unit[known[chosen]])
        held, stays = inside & (data.label >= 0), np.flatnonzero(~inside)
        tested = select(data, np.flatnonzero(held))
        return select(data, stays), LabelledSubset(tested, np.arange(len(tested)), tested.label), True, unit[stays]
    _enough_per_class(data, known, 3, "a test, a validation and a training image (give a test set to need only two)")
    held = np.zeros(len(data), dtype=bool)
    held[known[stratified(data.label[known], len(data.classes), share, draw)]] = True
    tested = select(data, np.flatnonzero(held))
    return select(data, np.flatnonzero(~held)), LabelledSubset(tested, np.arange(len(tested)), tested.label), True, None


def _refuse_shared_groups(data: ImageSet, tested: ImageSet) -> None:
    """Raises UserError where a test set shows a group of the training data."""
    if data.group is not None and tested.group is not None:
        both = {data.groups[k] for k in np.unique(data.group) if k >= 0} & {
            tested.groups[k] for k in np.unique(tested.group) if k >= 0
        }
        if both:
            raise UserError(
                f"keep_groups allows no group on both sides, but {len(both)} groups of the test set are in the training data"
                f" too, first {min(both)}; remove or rename them, or leave keep_groups out"
            )


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


def _enough_per_class(data: ImageSet, known: IntArray, need: int, what: str) -> None:
    count = np.bincount(data.label[known], minlength=len(data.classes))
    if count.min() < need:
        k = int(count.argmin())
        raise UserError(f"every class needs {need} labelled images, {what}, but {data.classes[k]} has {count[k]}; add images")
