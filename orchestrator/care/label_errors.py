"""Likely label errors: labels that models which have not learnt from them find unlikely.

Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", arXiv:1911.00068; ensembles:
Kuan & Mueller 2022, "Model-agnostic label quality scoring to detect real-world label errors". Both by cleanlab, an optional
extra.

n labelled images, N of the pool, V views, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.batch import seed_of
from methods.catalogue import method
from methods.data.records import IntArray
from methods.features import Features
from methods.training.on_features import fitted_head
from orchestrator.care.records import Finding, Place

MEMBERS = ("linear_probe", "prototype_classifier", "label_propagation", "frozen_pseudo_label")
"""Whose answers judge the labels before a study, each at its defaults; after one its finalists do. kNN is not among them: its
votes leave most classes at nothing, so that it cannot tell which of two labels is the less likely."""

FOLDS = 5

NEEDS = "cleanlab is not installed; pip install 'labelwise[check]'"

Probabilities = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """Labels and what models that had not learnt from them think.

    Attributes:
        index: int64 [n], which images.
        label: int64 [n], as given.
        members: float64 [n, K] of each model.
    """

    index: IntArray
    label: IntArray
    members: tuple[Probabilities, ...]

    @property
    def mean(self) -> Probabilities:
        """float64 [n, K]: the ensemble's answer."""
        return np.mean(self.members, axis=0)

    @property
    def accuracy(self) -> float:
        """Share of the labels that the ensemble agrees with."""
        return float((self.mean.argmax(1) == self.label).mean())


def can_be_found() -> bool:
    """Whether cleanlab is installed."""
    return find_spec("cleanlab") is not None


def judged(values: Tensor, label: IntArray, classes: int, seed: int) -> Judged | None:
    """Out-of-fold answers of feature methods; None where fewer than two classes have two labels.

    Args:
        values: float [N, V, D], embeddings of the pool.
        label: int64 [N], -1 where unlabelled. Labels of a class that has but one are left out: nothing could know them.
        seed: of the folds and the fits.
    """
    if not (label >= 0).any():
        return None
    count = np.bincount(label[label >= 0], minlength=classes)
    index = np.flatnonzero((label >= 0) & (count[label] >= 2))
    if len(np.unique(label[index])) < 2:
        return None
    fold = _folds(label[index], seed)
    members = [np.zeros((len(index), classes)) for _ in MEMBERS]
    memo: dict[object, object] = {}
    for number in range(fold.max() + 1):
        shown = np.full(len(label), -1, dtype=np.int64)
        shown[index[fold != number]] = label[index[fold != number]]
        asked = torch.from_numpy(index[fold == number])
        for name, answers in zip(MEMBERS, members, strict=True):
            features = Features(values, torch.from_numpy(shown), classes, seed_of(seed, name), seen="averaged", memo=memo)
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(features.seed)
                chosen = method(name)
                head = fitted_head(chosen, chosen.config(), features).eval()
                answers[fold == number] = head(features.rows(asked)[:, 0]).double().softmax(1).numpy()
    return Judged(index, label[index], tuple(members))


def _folds(label: IntArray, seed: int) -> IntArray:
    """int64 [n]: a fold for each label, every class dealt over all of them, or over as many as it has labels."""
    random = np.random.default_rng(seed_of(seed, "label errors"))
    fold = np.empty(len(label), dtype=np.int64)
    for k in np.unique(label):
        rows = random.permutation(np.flatnonzero(label == k))
        fold[rows] = (np.arange(len(rows)) + random.integers(FOLDS)) % FOLDS
    return np.unique(fold, return_inverse=True)[1].astype(np.int64)


def quality(judged: Judged) -> NDArray[np.float64]:
    """float64 [n], 0 to 1: how likely each label is right, the probability that the models give it. Needs cleanlab.

    That finds more of the wrong labels than the margin to the likeliest class: a model is often sure that a cat is a dog, but
    rarely that a ship is one (``tests/results/label_errors.md``).
    """
    from cleanlab.rank import get_label_quality_ensemble_scores, get_label_quality_scores

    label, members = _present(judged)
    if len(members) == 1:
        return np.asarray(get_label_quality_scores(label, members[0], method="self_confidence"), dtype=np.float64)
    found = get_label_quality_ensemble_scores(label, members, method="self_confidence", verbose=False)
    return np.asarray(found, dtype=np.float64)


def wrong(judged: Judged) -> NDArray[np.bool_]:
    """bool [n]: labels that are likely wrong, as many as confident learning counts. Needs cleanlab."""
    from cleanlab.filter import find_label_issues

    label, members = _present(judged)
    return np.asarray(find_label_issues(label, np.mean(members, axis=0), filter_by="prune_by_noise_rate", n_jobs=1))


def label_errors(judged: Judged, classes: Sequence[str], place: Callable[[int], Place]) -> tuple[Finding, ...]:
    """The labels that are likely wrong, the least likely to be right first. Needs cleanlab.

    Args:
        place: what to call the image at a position of ``judged.index``.
    """
    score, listed, likelier = quality(judged), wrong(judged), judged.mean.argmax(1)
    rows = [int(row) for row in np.argsort(score, kind="stable") if listed[row]]
    return tuple(Finding((place(int(judged.index[row])),), float(score[row]), classes[likelier[row]]) for row in rows)


def _present(judged: Judged) -> tuple[IntArray, list[Probabilities]]:
    """Labels and answers without classes that have no label, which cleanlab does not take."""
    present, label = np.unique(judged.label, return_inverse=True)
    answers = [p[:, present] for p in judged.members]
    return label.astype(np.int64), [p / p.sum(1, keepdims=True).clip(1e-12) for p in answers]
