"""Classifiers on frozen features, as torch modules: logistic regression, linear SVM, MLP and nearest neighbours.

Every head is fitted on features [n, D] and answers with logits [B, K] for all K classes, those without a label in the
fit included: they get a logit that never wins.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn
from torch.nn.utils import skip_init

from methods.data.records import IntArray
from methods.parts.heads import NEVER, NeighbourHead
from methods.protocols.embeddings import Classifier

__all__ = ["Classifier", "NeighbourHead", "linear_head", "mlp_head"]

FloatArray = NDArray[np.float32]

GRID = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse penalties that an inner cross-validation chooses from."""


@contextmanager
def _quiet() -> Iterator[None]:
    """One BLAS thread, since these products are small and threads cost 20 times what they save; no convergence warnings,

    since stopping at the iteration limit is one more, harmless, regulariser of a probe.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _scale(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation per feature; a constant feature is left as it is."""
    std = x.std(axis=0)
    return x.mean(axis=0), np.where(std > 1e-6, std, 1).astype(np.float32)


def _linear(weight: NDArray[np.float64], bias: NDArray[np.float64], present: IntArray, classes: int) -> nn.Linear:
    """A layer over all classes from rows for the present ones; two classes come as a single row from scikit-learn."""
    if len(present) == 2 and len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    layer: nn.Linear = skip_init(nn.Linear, weight.shape[1], classes)  # the global random state stays as it is
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(NEVER)
        layer.weight[present] = torch.from_numpy(weight).float()
        layer.bias[present] = torch.from_numpy(bias).float()
    return layer


def _folded(layer: nn.Linear, mean: FloatArray, std: FloatArray) -> nn.Linear:
    """The layer with the standardisation (x - mean) / std of its input inside its weights."""
    with torch.no_grad():
        weight = layer.weight.double() / torch.from_numpy(std).double()
        layer.bias.copy_(layer.bias.double() - weight @ torch.from_numpy(mean).double())
        layer.weight.copy_(weight)
    return layer


def linear_head(x: FloatArray, label: IntArray, classes: int, c: float | None, svm: bool, seed: int) -> nn.Linear:
    """Logistic regression (or one-against-rest linear SVM) on standardised features, as one layer on the raw ones.

    Args:
        x: [n, D].
        label: [n], of at least two classes.
        classes: K.
        c: inverse penalty; None chooses it from ``GRID`` by cross-validation inside these labels.
        svm: hinge loss instead of the logistic one.
        seed: of the inner folds and of the SVM's coordinate order.
    """
    mean, std = _scale(x)
    z = (x - mean) / std
    if c is None:
        c = _chosen_c(z, label, svm, seed)
    with _quiet():
        model = _linear_model(c, svm, seed).fit(z, label)
    return _folded(_linear(model.coef_, model.intercept_, model.classes_, classes), mean, std)


def _linear_model(c: float, svm: bool, seed: int) -> LogisticRegression | LinearSVC:
    if svm:
        return LinearSVC(C=c, dual="auto", random_state=seed % 2**32)
    return LogisticRegression(C=c, tol=1e-3, max_iter=300)


def _chosen_c(z: FloatArray, label: IntArray, svm: bool, seed: int) -> float:
    """The C of ``GRID`` with the best accuracy over 3 inner folds; the middle of the grid where a class has one label."""
    count = min(3, int(np.unique(label, return_counts=True)[1].min()))
    if count < 2:
        return GRID[len(GRID) // 2]
    splits = list(StratifiedKFold(count, shuffle=True, random_state=seed % 2**32).split(z, label))
    with _quiet():
        right = [
            sum(
                (_linear_model(c, svm, seed).fit(z[train], label[train]).predict(z[held]) == label[held]).sum()
                for train, held in splits
            )
            for c in GRID
        ]
    return GRID[int(np.argmax(right))]


def mlp_head(x: FloatArray, label: IntArray, classes: int, hidden: int, seed: int) -> nn.Sequential:
    """One hidden ReLU layer of ``hidden`` units on standardised features."""
    mean, std = _scale(x)
    model = MLPClassifier((hidden,), alpha=1e-2, batch_size=min(128, len(x)), max_iter=60, tol=1e-4, random_state=seed % 2**32)
    with _quiet():
        model.fit((x - mean) / std, label)
    first, last = model.coefs_
    inner: nn.Linear = skip_init(nn.Linear, x.shape[1], hidden)
    with torch.no_grad():
        inner.weight.copy_(torch.from_numpy(first.T))
        inner.bias.copy_(torch.from_numpy(model.intercepts_[0]))
    outer = _linear(last.T, model.intercepts_[1], model.classes_, classes)
    return nn.Sequential(_folded(inner, mean, std), nn.ReLU(), outer)
