"""What a classifier's answers are worth: accuracy, balanced accuracy, macro-F1, each as a mean over images, so that two
classifiers pair image by image whatever the metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.data.records import IntArray
from methods.protocols.contract import Score, mean_interval

FloatArray = NDArray[np.float64]
Metric = Callable[[IntArray, IntArray], FloatArray]
"""(label [n], predicted [n]) -> float64 [n], what each image contributes; their mean is the metric."""


def _accuracy(label: IntArray, predicted: IntArray) -> FloatArray:
    return (label == predicted).astype(np.float64)


def _balanced(label: IntArray, predicted: IntArray) -> FloatArray:
    """The mean recall over the classes that were asked (Brodersen et al. 2010): an image weighs by how rare its class is."""
    count = np.bincount(label)
    return (label == predicted) * len(label) / ((count > 0).sum() * count[label])


def _macro_f1(label: IntArray, predicted: IntArray) -> FloatArray:
    """The mean F1 over the classes that were asked. Not a mean over images; what an image contributes is its jackknife
    pseudo-value (Efron 1982), shifted so that their mean is the metric.
    """
    n, classes = len(label), int(max(label.max(), predicted.max())) + 1
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (label, predicted), 1)
    whole = _f1(confusion)
    if n == 1:
        return np.array([whole])
    without = np.zeros((classes, classes))
    for true, said in zip(*np.nonzero(confusion), strict=True):
        confusion[true, said] -= 1
        without[true, said] = _f1(confusion)
        confusion[true, said] += 1
    each = n * whole - (n - 1) * without[label, predicted]
    return each - each.mean() + whole


def _f1(confusion: FloatArray) -> float:
    right, asked, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = asked > 0
    return float(np.mean(2 * right[present] / (asked + said)[present]))


MetricName = Literal["accuracy", "balanced_accuracy", "macro_f1"]

METRICS: dict[MetricName, Metric] = {"accuracy": _accuracy, "balanced_accuracy": _balanced, "macro_f1": _macro_f1}
"""By the name that study files use."""


def measured(score: Score, metric: MetricName) -> Score:
    """The same answers by another metric, with a t-interval over what the images contribute.

    Args:
        score: of a protocol that keeps its answers.
        metric: what to make of them.
    """
    if metric == "accuracy":
        return score
    assert score.answers is not None, "the task has checked that the protocol keeps its answers"
    each = METRICS[metric](score.answers.label, score.answers.logits.argmax(1))
    value, low, high = mean_interval(each)
    low, high = (max(low, 0.0), min(high, 1.0)) if len(each) > 1 else (0.0, 1.0)
    return replace(score, metric=metric.replace("_", " "), value=value, low=low, high=high, correct=None, each=each)
