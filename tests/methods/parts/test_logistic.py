from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from methods.parts.logistic import PRECISE, fit_logistic


def problem(n: int, d: int, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.arange(n) % k
    return rng.normal(size=(k, d))[label] * 0.4 + rng.normal(size=(n, d)), label


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 100)], ids=["tall", "wide"])
def test_it_finds_what_scikit_learn_finds(n: int, d: int, intercept: bool) -> None:
    x, label = problem(n, d)
    weight = np.linspace(0.5, 2, n)
    theirs = LogisticRegression(C=0.7, tol=1e-10, max_iter=10_000, fit_intercept=intercept).fit(x, label, weight)
    target = F.one_hot(torch.from_numpy(label))
    w, b = fit_logistic(
        torch.from_numpy(x), target, 0.7, intercept=intercept, weight=torch.from_numpy(weight), steps=2000, tol=1e-9
    )
    np.testing.assert_allclose(w, theirs.coef_, atol=1e-5)
    bias = theirs.intercept_ if intercept else np.zeros(3)
    np.testing.assert_allclose(b, bias - bias.mean(), atol=1e-5)


def test_soft_targets_follow_the_formula() -> None:
    """The gradient of the loss, in plain loops, vanishes at what was found."""
    x, _ = problem(20, 4)
    target = np.random.default_rng(1).dirichlet(np.ones(3), 20)
    w, b = fit_logistic(torch.from_numpy(x), torch.from_numpy(target), 2.0, steps=2000, tol=1e-10)
    gradient, bias = w.numpy().copy(), np.zeros(3)
    for i in range(20):
        logits = [float(w[k] @ torch.from_numpy(x[i]) + b[k]) for k in range(3)]
        p = np.exp(logits) / np.exp(logits).sum()
        for k in range(3):
            gradient[k] += 2.0 * (p[k] - target[i, k]) * x[i]
            bias[k] += 2.0 * (p[k] - target[i, k])
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    np.testing.assert_allclose(bias, 0, atol=1e-6)


def test_large_problems_take_float32_and_agree() -> None:
    x, label = problem(PRECISE // 16 + 1, 16)
    target = F.one_hot(torch.from_numpy(label))
    w, b = fit_logistic(torch.from_numpy(x), target, 0.1)
    assert w.dtype == torch.float32
    right = float(((torch.from_numpy(x).float() @ w.T + b).argmax(1) == torch.from_numpy(label)).float().mean())
    theirs = LogisticRegression(C=0.1).fit(x, label).score(x, label)
    assert right == pytest.approx(theirs, abs=2e-3)
