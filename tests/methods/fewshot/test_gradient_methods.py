"""Meta-SGD, ANIL and Reptile: learned rates, head-only adaptation, and the step towards the tasks' weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

from methods.batch import EpisodeShape
from methods.fewshot import anil, maml, meta_sgd, reptile

SHAPE = {"ways": 3, "shots": 2, "queries": 2, "tasks": 2, "augmentation_strength": 0.0}
METHODS = (maml.METHOD, meta_sgd.METHOD, anil.METHOD, reptile.METHOD)
QUICK = {"reptile": {"test_steps": 3, "inner_lr": 0.01}}


@pytest.mark.parametrize("head", ["zero", "learned"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_any_episode_is_answered_without_a_trace(make, episodes, method, head) -> None:
    learner = make(method, **SHAPE, head=head, **QUICK.get(method.name, {})).eval()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    for shape in (EpisodeShape(2, 2, 1, 3), EpisodeShape(1, 6, 2, 1)):
        drawn = episodes(shape)
        logits = learner.query_logits(drawn)
        assert logits.shape == (shape.tasks, shape.ways * shape.queries, shape.ways)
        assert not logits.requires_grad or method is anil.METHOD
        with torch.no_grad():
            torch.testing.assert_close(learner.query_logits(drawn), logits.detach())
        with torch.inference_mode():
            torch.testing.assert_close(learner.query_logits(replace(drawn, support=drawn.support.clone())), logits.detach())
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_tasks_do_not_see_each_other(make, episodes, method) -> None:
    learner = make(method, **SHAPE, **QUICK.get(method.name, {})).eval()
    shape = EpisodeShape(3, 3, 2, 2)
    together = learner.query_logits(episodes(shape))
    alone = torch.cat([learner.query_logits(episodes(shape, slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [meta_sgd.METHOD, anil.METHOD], ids=lambda m: m.name)
def test_first_order_has_another_gradient_for_the_same_loss(make, step, method) -> None:
    losses, gradients = [], []
    for first_order in (False, True):
        learner = make(method, **SHAPE, steps=3, first_order=first_order, head="learned", inner_lr=0.5)
        loss = learner.loss(step(learner)).total
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in learner.encoder().parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[0].norm()


def test_meta_sgd_begins_as_maml(make, episodes) -> None:
    drawn = episodes(EpisodeShape(2, 3, 2, 2))
    pair = [make(m.METHOD, **SHAPE, steps=2, inner_lr=0.2).query_logits(drawn) for m in (maml, meta_sgd)]
    torch.testing.assert_close(*pair)


def test_meta_sgd_learns_its_rates_by_the_right_gradient(make, step) -> None:
    learner = make(meta_sgd.METHOD, **SHAPE, steps=2, inner_lr=0.3).double()
    now = step(learner)
    learner.loss(now).total.backward()
    assert all(rate.grad is not None and rate.grad.abs().max() > 0 for rate in learner.meta.lrs)
    for rate in (learner.meta.lrs[0], learner.meta.lrs[-2]):  # of a kernel, and of the head's inputs
        around = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                rate.view(-1)[1] += h
                logits = learner.query_logits(now.episodes).flatten(0, 1)
                rate.view(-1)[1] -= h
            around.append(float(cross_entropy(logits, now.episodes.query_label.flatten())))
        slope = (around[0] - around[1]) / 2e-5
        assert float(rate.grad.view(-1)[1]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_meta_sgd_rates_move_and_come_to_differ(make, step) -> None:
    learner = make(meta_sgd.METHOD, **SHAPE)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    for number in range(5):
        optimizer.zero_grad()
        learner.loss(step(learner, number)).total.backward()
        optimizer.step()
    rates = torch.cat([rate.detach().flatten() for rate in learner.meta.lrs])
    assert rates.std() > 1e-3


def test_anil_adapts_the_head_alone(make, step) -> None:
    learner = make(anil.METHOD, **SHAPE, steps=2, inner_lr=0.3, head="learned").double()
    now = step(learner)
    learner.loss(now).total.backward()
    body, head = list(learner.f.parameters()), list(learner.maml.module.parameters())
    start = [p.detach().clone().requires_grad_() for p in (*body, *head)]
    kernel, shift, scale, offset, weight, bias = start
    both = torch.cat([now.episodes.support, now.episodes.query], dim=1).flatten(0, 1).double() / 255
    x = torch.tanh(batch_norm(conv2d(both, kernel, shift, stride=2, padding=1), None, None, scale, offset, True))
    z = x.mean(dim=(2, 3)).view(2, 12, -1)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(2):
        fast = [weight, bias]
        for _ in range(2):
            loss = cross_entropy(linear(z[t, :6], *fast), now.episodes.support_label[t])
            fast = [p - 0.3 * g for p, g in zip(fast, torch.autograd.grad(loss, fast, create_graph=True), strict=True)]
        total = total + cross_entropy(linear(z[t, 6:], *fast), now.episodes.query_label[t]) / 2
    for parameter, expected in zip((*body, *head), torch.autograd.grad(total, start), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)  # Embeddings pass through float32.


def test_reptile_moves_to_the_mean_of_the_tasks_weights(make, step) -> None:
    knobs = {"steps": 2, "inner_batch": 100, "inner_lr": 0.02}
    learner = make(reptile.METHOD, **SHAPE, **knobs)
    now = step(learner)
    learner.loss(now).total.backward()
    start = [p.detach().clone() for p in learner.parameters()]
    ends = [torch.zeros_like(p) for p in start]
    for t in range(2):
        images = torch.cat([now.episodes.support[t], now.episodes.query[t]]).float() / 255
        label = torch.cat([now.episodes.support_label[t], now.episodes.query_label[t]])
        fast = [p.clone().requires_grad_() for p in start]
        adam = torch.optim.Adam(fast, lr=0.02, betas=(0.0, 0.999), eps=1e-8)
        for _ in range(2):
            kernel, shift, scale, offset, weight, bias = fast
            x = torch.tanh(batch_norm(conv2d(images, kernel, shift, stride=2, padding=1), None, None, scale, offset, True))
            adam.zero_grad()
            cross_entropy(linear(x.mean(dim=(2, 3)), weight, bias), label).backward()
            adam.step()
        for end, p in zip(ends, fast, strict=True):
            end += p.detach() / 2
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.7)
    optimizer.step()
    # A bias in front of a batch normalisation has no gradient but rounding, which Adam turns into whole steps.
    names = [name for name, _ in learner.named_parameters()]
    for name, p, a, b in zip(names, learner.parameters(), start, ends, strict=True):
        if not name.endswith("conv.bias"):
            torch.testing.assert_close(p.detach(), a + 0.7 * (b - a), rtol=1e-3, atol=1e-5)


def test_reptile_reports_the_inner_loss_and_asks_for_plain_descent(make, step) -> None:
    learner = make(reptile.METHOD, **SHAPE)
    loss = learner.loss(step(learner))
    assert float(loss.total.detach()) == pytest.approx(float(loss.parts["inner_loss"]))
    spec = learner.optimizer()
    assert (spec.kind, spec.momentum, spec.weight_decay) == ("sgd", 0.0, 0.0)
