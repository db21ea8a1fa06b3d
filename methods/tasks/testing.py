"""A conformance check that every task passes, ours or a user's: ``check_task(task, source)`` in a test."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import fields
from typing import Literal

import numpy as np
import torch
from torch import nn

from methods.data.records import LabelledSubset, Source, Split, TrainData
from methods.data.views import SubsetImages, image_hashes
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.heads import Classifier
from methods.protocols.contract import Score, Trained
from methods.tasks.contract import Task


def check_task(task: Task, source: Source, test: float | Source | Literal["none"] | None = None, seed: int = 0) -> Split:
    """Divides ``source`` by ``task`` and checks what a study relies on.

    Args:
        source: small, with enough images for the task, and without copies of an image.
        test: as in ``Task.divide``.
        seed: of the division.
    Returns:
        The split, for further checks of one's own.
    Raises:
        AssertionError: the task breaks its contract; says where.
        UserError: the source does not suit the task.
    """
    assert pickle.loads(pickle.dumps(task)) == task, "a task must travel to workers"  # noqa: S301
    protocol = task.protocol()
    task.check(protocol, test)
    split = task.divide(source, test, protocol, seed)
    _same(split, task.divide(source, test, protocol, seed))
    divisions = task.divisions(split)
    assert divisions, "a configuration is trained on at least one division"
    for part in divisions:
        _check_parts(task, part, split.test)
    _check_shown(task.final_data(split), split)
    for count in task.fold_counts(split):
        folds = task.folds(split, count, seed)
        assert len(folds) == count, "as many folds as were asked for"
        for fold in folds:
            for part in task.divisions(fold):
                _check_parts(task, part, split.test)
    models = [_model(part) for part in divisions]
    judged, again = (task.judge(protocol, models, split, seed) for _ in range(2))
    _check_score(judged.score)
    assert (judged.units is None) == (again.units is None)
    if judged.units is not None and again.units is not None:
        assert np.array_equal(judged.units, again.units), "a trial must pair with itself"
        assert judged.units.dtype in (np.bool_, np.float32)
    whole = Split(task.final_data(split), split.labelled, split.validation, None, False)
    for model, refitted in ((models[0], False), (_model(whole), True)):
        labels = task.probe_labels(split, model, refitted)
        assert (labels.label >= 0).all(), "a probe must know its labels"
        if split.test is not None:
            assert not _pixels(labels) & _pixels(split.test), "a probe must not be fitted on test images"
            _check_score(task.test(protocol, model, split, split.test, refitted, seed))
        predictor = task.classifier(model, split, seed)
        assert predictor is None or isinstance(predictor, nn.Module)
    assert 0 <= task.share_of_refit(split) < np.inf
    _check_told(task, split)
    return split


def _check_parts(task: Task, part: Split, test: LabelledSubset | None) -> None:
    """Training, validation and test share no image, and methods see the labels of the training part alone."""
    train, validation = _pixels(part.labelled), _pixels(part.validation)
    assert train, "a division needs training labels"
    assert validation, "a division needs images that validate"
    assert not train & validation, "an image both trains and validates"
    pool = set(image_hashes(part.train.images))
    assert train <= pool, "labels to train on must be of images in the pool"
    if test is not None:
        asked = _pixels(test)
        assert asked, "a test set must not be empty"
        assert not asked & (pool | train | validation), "a test image is in another part"
    position = np.arange(len(part.train)) if part.train.position is None else part.train.position
    shown, order = np.flatnonzero(part.train.label >= 0), np.argsort(part.labelled.index)
    index, label = part.labelled.index[order], part.labelled.label[order]
    assert np.array_equal(position[shown], index), "methods must see the labels of the training part, and no other"
    assert np.array_equal(part.train.label[shown], label), "a label changed on its way to methods"
    _check_further(part.train)
    truth = task.truth(part, part.train)
    if truth is not None:
        assert not ((truth >= 0) & (part.train.label >= 0)).any(), "what is held back must be hidden"


def _check_further(data: TrainData) -> None:
    """Captions that tell the class, and further labels, are hidden where the label is."""
    hidden = data.label < 0
    if data.tokens is not None and data.caption_labels:
        assert not data.tokens[hidden].any(), "a caption tells a hidden label"
    further = data.target_labels()
    assert further is None or (further[hidden] < 0).all(), "a further label is shown where the label is hidden"


def _check_shown(data: TrainData, split: Split) -> None:
    seen = split.train.label >= 0
    assert len(data) == len(split.train), "a refit sees the pool of the search"
    assert np.array_equal(data.label[seen], split.train.label[seen]), "a refit sees at least the labels of the search"
    _check_further(data)


def _check_score(score: Score) -> None:
    assert np.isfinite(score.value), "a score must be finite"
    assert score.n > 0
    assert score.low <= score.value <= score.high


def _check_told(task: Task, split: Split) -> None:
    assert task.describe(split).strip(), "a dry run tells the division"
    facts = task.facts(split)
    for item in fields(facts):
        value = getattr(facts, item.name)
        texts = list(value.values()) if isinstance(value, Mapping) else [str(value)]
        assert all("\n" not in text for text in texts), f"facts.{item.name} must be one line"
    assert split.test is not None or facts.no_test, "a study without a test says so"


def _model(part: Split) -> Trained:
    """An untrained classifier of the division's classes, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(EncoderSpec("conv4"), part.train.images.shape, part.train.mean, part.train.std)
        return Trained(encoder, Classifier(encoder, part.train.classes), uses_labels=True)


def _pixels(part: LabelledSubset) -> set[bytes]:
    return set(image_hashes(SubsetImages(part.data.images, part.index)))


def _same(first: Split, second: Split) -> None:
    """The same seed divides alike."""
    pairs: list[tuple[LabelledSubset | None, LabelledSubset | None]] = [(first.test, second.test)]
    for a, b in zip(first.divisions(), second.divisions(), strict=True):
        assert np.array_equal(a.train.label, b.train.label), "the same seed must show the same labels"
        pairs += [(a.labelled, b.labelled), (a.validation, b.validation)]
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert np.array_equal(one.index, other.index), "the same seed must divide alike"
            assert np.array_equal(one.label, other.label), "the same seed must divide alike"
            assert one.data.classes == other.data.classes
