"""The methods on frozen features, each against its formula in plain float64."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from methods.adapt import knn_classifier, label_propagation, linear_probe, prototype_classifier
from methods.contracts import Method
from methods.features import Features
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.heads import Classifier, load_predictor, save_predictor
from search_spaces.domains import UserError, build

N, D, K = 120, 12, 3
TRUTH = np.arange(N) % K


def features(seen: Any = "one", labelled: int = 30, dtype: torch.dtype = torch.float32) -> Features:
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(K, 1, D)) * 2
    values = 3 + centre[TRUTH] + rng.normal(size=(N, 2, D)) * np.linspace(0.5, 3, D)
    label = np.where(np.arange(N) < labelled, TRUTH, -1)
    return Features(torch.from_numpy(values).to(dtype), torch.from_numpy(label), K, seen=seen)


def fit(method: Method, given: Features, **values: Any) -> torch.nn.Module:
    assert method.fit is not None
    with torch.no_grad():
        return method.fit(build(method.config, values), given)


def framed(values: np.ndarray, pool: np.ndarray, how: str) -> np.ndarray:
    if how == "none":
        return values
    z = values - pool.mean(0)
    if how == "standardise":
        return z / pool.std(0)
    return z / np.linalg.norm(z, axis=1, keepdims=True) if how == "l2" else z


@pytest.mark.parametrize("how", ["none", "centre", "standardise", "l2"])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_probe_is_scikit_learns_on_framed_features(how: str, intercept: bool) -> None:
    given = features()
    head = fit(linear_probe.METHOD, given, standardise=how, intercept=intercept, balance=False, c=2.0)
    pool = given.values[:, 0].double().numpy()
    x = framed(pool[:30], pool, how)
    scale = np.sqrt((x**2).sum(1).mean())
    theirs = LogisticRegression(C=2.0, fit_intercept=intercept, tol=1e-9, max_iter=10_000).fit(x / scale, TRUTH[:30])
    with torch.no_grad():
        found = head(given.values[:, 0]).softmax(1)
    # The probe stops at a gradient of 1e-4.
    np.testing.assert_allclose(found, theirs.predict_proba(framed(pool, pool, how) / scale), atol=5e-3)


def test_balance_weighs_classes_alike() -> None:
    given = features()
    label = given.label.clone()
    label[6:30][label[6:30] == 0] = -1  # class 0 keeps 2 labels, the others 10
    few = Features(given.values, label, K)
    known = (label >= 0).numpy()
    pool = given.values[:, 0].double().numpy()
    x = framed(pool[known], pool, "l2")
    theirs = LogisticRegression(C=10, fit_intercept=False, class_weight="balanced", tol=1e-9, max_iter=9999)
    theirs.fit(x, label.numpy()[known])
    with torch.no_grad():
        found = fit(linear_probe.METHOD, few)(given.values[:, 0]).softmax(1)
    np.testing.assert_allclose(found, theirs.predict_proba(framed(pool, pool, "l2")), atol=5e-3)


def test_views() -> None:
    """Averaged views are one example, augmented ones two; only the image itself is asked of the latter."""
    x, label = features("averaged").labelled()
    values = features().values
    torch.testing.assert_close(x, values[:30].mean(1))
    assert len(label) == 30
    x, label = features("augmented").labelled()
    torch.testing.assert_close(x, values[:30].flatten(0, 1))
    assert label.tolist() == np.repeat(TRUTH[:30], 2).tolist()
    torch.testing.assert_close(features("augmented").pool(), values[:, 0])
    torch.testing.assert_close(features("one").labelled()[0], values[:30, 0])


def test_moments_are_of_the_pool_in_float64() -> None:
    given = features("averaged", dtype=torch.float16)
    mean, std = given.moments()
    pool = given.values.double().mean(1).numpy()
    np.testing.assert_allclose(mean, pool.mean(0), atol=1e-3)
    np.testing.assert_allclose(std, pool.std(0), atol=1e-3)


def test_neighbours_vote_by_the_formula() -> None:
    given = features()
    head = fit(knn_classifier.METHOD, given, k=5, temperature=0.2)
    pool = given.values[:, 0].double().numpy()
    z = framed(pool, pool, "l2")
    for i in (40, 77):
        cosine = z[:30] @ z[i]
        nearest = np.argsort(-cosine)[:5]
        votes = np.zeros(K)
        for j in nearest:
            votes[TRUTH[j]] += np.exp(cosine[j] / 0.2)
        with torch.no_grad():
            found = head(given.values[i : i + 1, 0]).softmax(1)[0]
        np.testing.assert_allclose(found, votes / votes.sum(), atol=1e-4)


@pytest.mark.parametrize("how", ["none", "centre", "standardise", "l2"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_nearest_mean_wins(distance: str, how: str) -> None:
    given = features()
    head = fit(prototype_classifier.METHOD, given, distance=distance, standardise=how)
    pool = given.values[:, 0].double().numpy()
    z = framed(pool, pool, how)
    mean = np.stack([z[:30][TRUTH[:30] == k].mean(0) for k in range(K)])
    if distance == "cosine":
        expected = (z @ mean.T) / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(mean, axis=1) / 0.1
    else:
        scale = 0.1 * (z[:30] ** 2).sum(1).mean()
        expected = -((z[:, None] - mean) ** 2).sum(2) / scale
    with torch.no_grad():
        found = head(given.values[:, 0]).log_softmax(1)
    expected = torch.from_numpy(expected).log_softmax(1)
    torch.testing.assert_close(found.double(), expected, atol=5e-3, rtol=5e-3)


def test_propagation_learns_from_the_pool() -> None:
    """With two labels a class in twelve noisy dimensions it knows more than the probe that it starts from."""
    given = features(labelled=6)
    with torch.no_grad():
        right = [
            float((fit(method.METHOD, given)(given.pool()).argmax(1).numpy() == TRUTH)[6:].mean())
            for method in (linear_probe, label_propagation)
        ]
    assert right[1] > right[0]
    assert right[1] > 0.8


def test_one_class_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="at least 2 classes, got 1 labels; label another class"):
        fit(linear_probe.METHOD, features(labelled=1))


@pytest.mark.parametrize("module", [linear_probe, knn_classifier, prototype_classifier, label_propagation])
def test_a_head_is_exported_with_its_encoder(module: Any) -> None:
    encoder = build_encoder(EncoderSpec("conv4"), (1, 16, 16), (0.5,), (0.2,)).eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 16, 16), generator=rng, dtype=torch.uint8)
    with torch.no_grad():
        values = encoder(images)[:, None]
    head = fit(module.METHOD, Features(values, torch.arange(40) % 4, 4), views="one").eval()
    file = io.BytesIO()
    save_predictor(file, Classifier(encoder, head), tuple("abcd"))
    file.seek(0)
    loaded = load_predictor(file)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), head(encoder(images)).float())
