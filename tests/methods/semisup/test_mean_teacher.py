"""Mean teacher: formula, gradient through one branch, and the closed form of the average."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from methods.parts.ramps import warmed_momentum
from methods.semisup import mean_teacher


def test_loss_equals_plain_loops(harness: Any, loops: Any) -> None:
    h = harness(mean_teacher, mu=2, weight=5.0, ramp=0.8)
    with torch.no_grad():
        for p in h.learner.average.parameters():
            p.mul_(0.5)
    step = h.step(progress=0.4)
    loss = h.loss(step)
    x_student, u_student, x_teacher, u_teacher = h.of("augment")
    student = loops.rows(h.learner.model, torch.cat([x_student, u_student]))
    teacher = loops.rows(h.learner.average.module, torch.cat([x_teacher, u_teacher]))
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(student[i], label[i]) for i in range(4)])
    pairs = zip(student, teacher, strict=True)
    consistency = loops.mean([loops.squared(loops.softmax(s), loops.softmax(t)) for s, t in pairs])
    weight = 5.0 * math.exp(-5 * (1 - 0.4 / 0.8) ** 2)
    assert len(student) == 12
    assert loss.total.item() == pytest.approx(supervised + weight * consistency, rel=1e-5)
    assert loss.parts["consistency"].item() == pytest.approx(consistency, rel=1e-4)


def test_the_gradient_goes_through_the_student_only(harness: Any) -> None:
    h = harness(mean_teacher)
    with torch.no_grad():
        for p in h.learner.average.parameters():
            p.mul_(0.5)
    h.loss(h.step()).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.learner.model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in h.learner.average.parameters())


def test_the_teacher_is_the_closed_form_of_the_average(harness: Any) -> None:
    h = harness(mean_teacher, momentum=0.9)
    weight = h.learner.model.head.weight
    history = [weight.detach().double().clone()]
    for number in range(30):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        history.append(weight.detach().double().clone())
        h.learner.after_step(h.step(number))
    # w_T = sum_i (1 - m_i) prod_{j > i} m_j w_i, with m_i the warmed momentum and the start in the place of w_0.
    momenta = [0.0, *(warmed_momentum(0.9, number) for number in range(30))]
    expected = torch.zeros_like(history[0])
    for i, value in enumerate(history):
        expected += (1 - momenta[i]) * math.prod(momenta[i + 1 :]) * value
    torch.testing.assert_close(h.learner.predictor().head.weight.double(), expected, rtol=1e-5, atol=1e-5)
    assert h.learner.encoder() is h.learner.predictor().encoder


def test_views_of_student_and_teacher_differ(harness: Any) -> None:
    h = harness(mean_teacher)
    h.loss(h.step())
    one, _, two, _ = h.of("augment")
    assert not torch.equal(one, two)
