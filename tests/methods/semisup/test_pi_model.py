"""Pi-model: formula in both costs, and the gradient through both branches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from methods.semisup import pi_model
from search_spaces.domains import build


@pytest.mark.parametrize("cost", ["probabilities", "logits"])
def test_loss_equals_plain_loops(harness: Any, loops: Any, cost: str) -> None:
    h = harness(pi_model, mu=2, cost=cost, weight=3.0, ramp=1.0)
    step = h.step(progress=0.7)
    loss = h.loss(step)
    views = h.of("augment")
    one, two = (loops.rows(h.learner.model, torch.cat(part)) for part in (views[:2], views[2:]))
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(one[i], label[i]) for i in range(4)])
    terms = []
    for a, b in zip(one, two, strict=True):
        terms.append(loops.squared(a, b) if cost == "logits" else loops.squared(loops.softmax(a), loops.softmax(b)))
    assert len(terms) == 12
    weight = 3.0 * math.exp(-5 * 0.3**2)
    assert loss.total.item() == pytest.approx(supervised + weight * loops.mean(terms), rel=1e-5)


def test_the_gradient_goes_through_both_views(harness: Any) -> None:
    h = harness(pi_model)
    seen: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> None:
        logits.retain_grad()
        seen.append(logits)

    h.learner.model.register_forward_hook(hook)
    h.loss(h.step()).total.backward()
    (logits,) = seen
    one, two = logits.grad.chunk(2)
    pool_one, pool_two = one[4:], two[4:]
    assert pool_one.abs().sum() > 0
    # A squared difference pulls both with equal force: through the softmax of equal logits they would cancel exactly.
    assert pool_two.abs().sum() > 0
    assert two[:4].abs().sum() > 0, "the second view of labelled images is compared as well"


def test_logits_have_a_weight_of_their_own() -> None:
    assert build(pi_model.Config, {}).weight == 10.0
    assert build(pi_model.Config, {"cost": "logits"}).weight == 0.1
