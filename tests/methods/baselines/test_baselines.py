"""The supervised yardstick and its regularisers against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from methods.baselines import cutout, mixup, supervised


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_supervised_is_the_mean_cross_entropy_with_smoothed_targets(harness: Any, loops: Any, smoothing: float) -> None:
    h = harness(supervised, label_smoothing=smoothing)
    step = h.step()
    loss = h.loss(step)
    (x,) = h.of("augment")
    expected = []
    for row, label in zip(loops.rows(h.learner.model, x), step.from_labelled().labels().tolist(), strict=True):
        target = [smoothing / 4 + (1 - smoothing) * (k == label) for k in range(4)]
        expected.append(loops.cross_entropy(row, target))
    assert loss.total.item() == pytest.approx(loops.mean(expected), rel=1e-5)
    assert h.learner.batch_spec().pool == 0


def test_the_yardstick_can_have_every_recipe(harness: Any) -> None:
    recipes = {}
    for recipe in ("weak", "strong", "simclr", "crop_flip"):
        h = harness(supervised, augmentation=recipe, augmentation_strength=1.5)
        assert h.learner.augment.inner.recipe == recipe
        assert h.learner.augment.inner.strength == 1.5
        h.loss(h.step())
        recipes[recipe] = h.of("augment")[0]
    views = list(recipes.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_mixup_mixes_images_and_labels_with_one_share_a_row(harness: Any, loops: Any) -> None:
    h = harness(mixup, alpha=0.7)
    step = h.step()
    loss = h.loss(step)
    batch = step.from_labelled()
    (x,) = h.of("augment")
    order = batch.stream.fork("partners").permutation().tolist()
    share = batch.stream.fork("lambda").beta(0.7).tolist()
    label = batch.labels().tolist()
    expected = []
    for i in range(len(x)):
        image = share[i] * x[i] + (1 - share[i]) * x[order[i]]
        (row,) = loops.rows(h.learner.model, image[None])
        target = [share[i] * (k == label[i]) + (1 - share[i]) * (k == label[order[i]]) for k in range(4)]
        expected.append(loops.cross_entropy(row, target))
    assert sorted(order) == list(range(len(x)))
    assert loss.total.item() == pytest.approx(loops.mean(expected), rel=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_cutout_hides_the_share_it_says(harness: Any, ratio: float) -> None:
    h = harness(cutout, size=16, mask_ratio=ratio)
    step = h.step()
    loss = h.loss(step)
    (x,) = h.of("augment")
    hidden = (x == 0.5).all(1).float().mean((1, 2))  # B
    torch.testing.assert_close(hidden, torch.full_like(hidden, ratio), atol=0.02, rtol=0)
    expected = F.cross_entropy(h.learner.model(x), step.from_labelled().labels())
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("module", [supervised, mixup, cutout])
def test_learning_rate_is_per_256_images_and_the_answer_is_the_trained_classifier(harness: Any, module: Any) -> None:
    h = harness(module, batch_size=16, lr=0.01)
    assert h.learner.optimizer().lr == pytest.approx(0.01 * 16 / 256)
    assert h.learner.predictor() is h.learner.model
    assert h.learner.encoder() is h.learner.model.encoder
