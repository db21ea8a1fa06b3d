"""Entropy minimization: formula and direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.semisup import entropy_minimization


def test_loss_equals_plain_loops(harness: Any, loops: Any) -> None:
    h = harness(entropy_minimization, mu=2, weight=0.7)
    step = h.step()
    loss = h.loss(step)
    x, u = h.of("augment")
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(loops.rows(h.learner.model, x), label, strict=True)])
    entropy = loops.mean([loops.entropy(loops.softmax(r)) for r in loops.rows(h.learner.model, u)])
    assert loss.total.item() == pytest.approx(supervised + 0.7 * entropy, rel=1e-5)


def test_a_step_down_makes_the_pool_more_certain(harness: Any) -> None:
    h = harness(entropy_minimization, weight=100.0)
    step = h.step()
    first = h.loss(step)
    first.total.backward()
    with torch.no_grad():
        for p in h.learner.parameters():
            p.sub_(1e-3 * p.grad)
    assert h.loss(step).parts["entropy"] < first.parts["entropy"]
