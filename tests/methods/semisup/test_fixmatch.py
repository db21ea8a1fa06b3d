"""FixMatch: formula, threshold, gradient, and what is evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.semisup import fixmatch


@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
def test_loss_equals_plain_loops(harness: Any, loops: Any, threshold: float) -> None:
    h = harness(fixmatch, mu=3, threshold=threshold, lambda_u=2.0)
    with torch.no_grad():
        h.learner.model.head.weight.mul_(4)
    step = h.step()
    loss = h.loss(step)
    x, u_weak = h.of("weak")
    (u_strong,) = h.of("strong")
    weak, strong = loops.rows(h.learner.model, u_weak), loops.rows(h.learner.model, u_strong)
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(loops.rows(h.learner.model, x), label, strict=True)])
    terms, used = [], 0
    for w, s in zip(weak, strong, strict=True):
        q = loops.softmax(w)
        best = q.index(max(q))
        keep = q[best] >= threshold
        used += keep
        terms.append(loops.cross_entropy(s, best) if keep else 0.0)
    assert loss.total.item() == pytest.approx(supervised + 2.0 * loops.mean(terms), rel=1e-5)
    assert loss.pseudo_labels is not None
    assert loss.pseudo_labels.used.sum().item() == used
    assert torch.equal(loss.pseudo_labels.index, step.from_pool().index)
    if threshold == 0.45:
        assert 0 < used < 12, "the case in between is the one worth testing"


def test_no_gradient_flows_through_the_weak_prediction(harness: Any) -> None:
    """With the labelled loss taken out, the gradient is that of fixed labels."""
    h = harness(fixmatch, mu=2, threshold=0.0)
    step = h.step()
    loss = h.loss(step)
    (loss.total - torch.nn.functional.cross_entropy(h.learner.model(h.of("weak")[0]), step.from_labelled().labels())).backward()
    got = h.learner.model.head.weight.grad.clone()
    h.learner.zero_grad()
    label = h.learner.model(h.of("weak")[1]).argmax(1)
    torch.nn.functional.cross_entropy(h.learner.model(h.of("strong")[0]), label).backward()
    torch.testing.assert_close(got, h.learner.model.head.weight.grad, rtol=1e-4, atol=1e-6)


def test_strength_scales_the_strong_branch_only_and_the_average_is_evaluated(harness: Any) -> None:
    h = harness(fixmatch, augmentation_strength=0.5)
    assert h.learner.weak.inner.strength == 1.0
    assert h.learner.strong.inner.strength == 0.5
    assert h.learner.predictor() is h.learner.average.module
    before = h.learner.predictor().head.weight.clone()
    with torch.no_grad():
        h.learner.model.head.weight.add_(1)
    h.learner.after_step(h.step(0))
    torch.testing.assert_close(h.learner.predictor().head.weight, before + 0.5)
    assert h.learner.batch_spec().pool == 3 * h.learner.batch_spec().labelled
