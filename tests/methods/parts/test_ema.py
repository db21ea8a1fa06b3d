"""Averages of weights and statistics, step by step in float64, and the two schedules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from methods.parts.ema import Ema
from methods.parts.ramps import cosine_momentum, sigmoid_ramp


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def _train(net: nn.Sequential, steps: int, seen: list[list[float]] | None = None) -> None:
    for step in range(steps):
        net(torch.randn(8, 3) * (step + 1)).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * (p.grad if p.grad is not None else 0)
                p.grad = None
        if seen is not None:
            seen.append(net[0].weight.flatten().tolist())


def test_an_average_is_the_geometric_sum_of_past_weights() -> None:
    net = _net()
    teacher, m = Ema(net), 0.7
    expected = net[0].weight.double().flatten().tolist()
    for _ in range(5):
        seen: list[list[float]] = []
        _train(net, 1, seen)
        teacher.update(net, m)
        expected = [m * a + (1 - m) * b for a, b in zip(expected, seen[0], strict=True)]
    torch.testing.assert_close(teacher.module[0].weight.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_momentum_0_copies_and_1_keeps() -> None:
    net = _net()
    keeps, copies = Ema(net), Ema(net)
    start = copy.deepcopy(net.state_dict())
    _train(net, 2)
    keeps.update(net, 1.0)
    copies.update(net, 0.0)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(copies.module.state_dict()[name], value)
        if value.is_floating_point():
            torch.testing.assert_close(keeps.module.state_dict()[name], start[name])


def test_a_teacher_has_no_gradient_and_does_not_follow_by_itself() -> None:
    net = _net()
    teacher = Ema(net)
    assert all(not p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not teacher(torch.randn(4, 3, requires_grad=True)).requires_grad
    before = teacher.module[0].weight.clone()
    _train(net, 1)
    assert torch.equal(teacher.module[0].weight, before)


def test_a_teacher_used_in_evaluation_averages_its_statistics() -> None:
    net = _net()
    teacher = Ema(net)
    teacher.eval()
    teacher(torch.randn(4, 3))
    before = teacher.module[1].running_mean.clone()
    _train(net, 3)
    teacher.update(net, 0.75)
    torch.testing.assert_close(teacher.module[1].running_mean, 0.75 * before + 0.25 * net[1].running_mean)
    assert teacher.module[1].num_batches_tracked.item() == 3


def test_a_teacher_used_in_training_keeps_its_own_statistics() -> None:
    net = _net()
    teacher = Ema(net)
    teacher(torch.randn(8, 3) + 5)
    own = teacher.module[1].running_mean.clone()
    assert not torch.equal(own, net[1].running_mean)
    _train(net, 2)
    teacher.update(net, 0.5)
    assert torch.equal(teacher.module[1].running_mean, own)


def test_a_teacher_resumes_from_its_state() -> None:
    net = _net()
    teacher = Ema(net)
    teacher(torch.randn(8, 3))
    other = Ema(_net())
    other.load_state_dict(teacher.state_dict())
    _train(net, 1)
    for t in (teacher, other):
        t.update(net, 0.5)
    for a, b in zip(teacher.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_cosine_momentum_goes_from_the_base_to_1() -> None:
    assert cosine_momentum(0.9, 0.0) == pytest.approx(0.9)
    assert cosine_momentum(0.9, 0.5) == pytest.approx(0.95)
    assert cosine_momentum(0.9, 1.0) == 1.0


def test_a_ramp_rises_to_1_at_its_share() -> None:
    assert sigmoid_ramp(0.0, 0.4) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp(0.2, 0.4) == pytest.approx(math.exp(-5 * 0.25))
    assert sigmoid_ramp(0.4, 0.4) == sigmoid_ramp(0.9, 0.4) == sigmoid_ramp(0.0, 0.0) == 1.0
