from __future__ import annotations

import gc
import resource
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

from methods import CATALOGUE, EncoderSpec, Training, TrainSettings
from methods.batch import EpisodeShape
from methods.fewshot.maml import METHOD
from search_spaces.domains import build

KNOBS = {"ways": 3, "shots": 2, "queries": 2, "tasks": 2, "inner_lr": 0.3, "head": "learned", "augmentation_strength": 0.0}


def _by_hand(learner, now, steps: int, first_order: bool) -> list[Tensor]:
    """Meta-gradients by explicit differentiation through the inner steps of the tiny network."""
    start = [p.detach().clone().requires_grad_() for p in learner.parameters()]

    def logits(parameters: list[Tensor], images: Tensor) -> Tensor:
        kernel, shift, scale, offset, weight, bias = parameters
        x = conv2d(images.double() / 255, kernel, shift, stride=2, padding=1)
        x = torch.tanh(batch_norm(x, None, None, scale, offset, True))
        return linear(x.mean(dim=(2, 3)), weight, bias)

    total = torch.zeros((), dtype=torch.float64)
    for support, label, query, target in zip(
        now.episodes.support, now.episodes.support_label, now.episodes.query, now.episodes.query_label, strict=True
    ):
        fast = start
        for _ in range(steps):
            loss = cross_entropy(logits(fast, support), label)
            grads = torch.autograd.grad(loss, fast, create_graph=not first_order)
            fast = [p - 0.3 * g for p, g in zip(fast, grads, strict=True)]
        total = total + cross_entropy(logits(fast, query), target) / 2
    return list(torch.autograd.grad(total, start))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_is_the_hand_written_one(make, step, steps, first_order) -> None:
    learner = make(METHOD, **KNOBS, steps=steps, first_order=first_order).double()
    now = step(learner)
    learner.loss(now).total.backward()
    for parameter, expected in zip(learner.parameters(), _by_hand(learner, now, steps, first_order), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)  # Images pass through float32.


def test_second_order_is_the_slope_of_the_loss_and_first_order_is_not(make, step) -> None:
    gradients = {}
    for first_order in (False, True):
        learner = make(METHOD, **KNOBS, steps=3, first_order=first_order).double()
        now = step(learner)
        learner.loss(now).total.backward()
        parameter = learner.net.body.conv.weight
        gradients[first_order] = parameter.grad.flatten()[:12].clone()
    slopes = []
    with torch.no_grad():
        for i in range(12):
            around = []
            for h in (1e-5, -1e-5):
                parameter.view(-1)[i] += h
                logits = learner.query_logits(now.episodes).flatten(0, 1)  # float64, which the loss is not
                around.append(float(cross_entropy(logits, now.episodes.query_label.flatten())))
                parameter.view(-1)[i] -= h
            slopes.append((around[0] - around[1]) / 2e-5)
    slope = torch.tensor(slopes, dtype=torch.float64)
    assert (gradients[False] - slope).norm() < 1e-4 * slope.norm()
    assert (gradients[True] - slope).norm() > 0.05 * slope.norm()


@pytest.mark.parametrize("head", ["zero", "learned"])
@pytest.mark.parametrize("ways", [2, 3, 6])
def test_any_number_of_ways_without_gradients_outside(make, episodes, head, ways) -> None:
    learner = make(METHOD, **{**KNOBS, "head": head}, steps=2).eval()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    drawn = episodes(EpisodeShape(2, ways, 1, 2))
    with torch.no_grad():
        plain = learner.query_logits(drawn)
    with torch.inference_mode():
        inference = learner.query_logits(replace(drawn, support=drawn.support.clone()))
    assert plain.shape == (2, ways * 2, ways)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, inference)
    assert not learner.query_logits(drawn).requires_grad  # Evaluation builds no second-order graph.
    torch.testing.assert_close(plain, learner.train().query_logits(drawn).detach())
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)  # Scoring leaves nothing behind.


def test_zero_head_does_not_prefer_a_class(make, episodes) -> None:
    learner = make(METHOD, **{**KNOBS, "head": "zero"}, steps=3).double()
    drawn = episodes(EpisodeShape(1, 3, 2, 2))
    renamed = replace(drawn, support_label=(drawn.support_label + 1) % 3)
    torch.testing.assert_close(learner.query_logits(renamed), learner.query_logits(drawn).roll(1, dims=2))


def test_tasks_do_not_see_each_other(make, episodes) -> None:
    learner = make(METHOD, **KNOBS, steps=2)
    shape = EpisodeShape(3, 3, 2, 2)
    together = learner.query_logits(episodes(shape))
    alone = torch.cat([learner.query_logits(episodes(shape, slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_running_statistics_follow_the_whole_meta_batch(make, step) -> None:
    learner = make(METHOD, **KNOBS, steps=2)
    now = step(learner)
    norm, conv = learner.net.body.norm, learner.net.body.conv
    learner.loss(now)
    with torch.no_grad():
        x = conv(now.episodes.support.flatten(0, 1).float() / 255)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(dim=(0, 2, 3), correction=0))
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["maml", "meta_sgd", "anil"])
def test_memory_stays_flat(make, data, name) -> None:
    """Over hundreds of whole steps of each: sampling, second-order gradients, optimizer."""
    method = CATALOGUE[name]
    knobs = {**KNOBS, "steps": 2} if name != "anil" else {**KNOBS, "steps": 3}
    training = Training(method, build(method.config, knobs), data, TrainSettings(1, EncoderSpec(), 0, 10**6, "fp32"))

    def work(iterations: int) -> int:
        for _ in range(iterations):
            training.one_step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = work(400)  # by then the allocator has what a step needs, whatever ran in this process before
    tensors = _tensors()
    after = work(700)
    assert after - before < 8 * 1024  # KiB; a leaked graph of this size would cost tens of MiB.
    assert _tensors() <= tensors + 5


def _tensors() -> int:
    gc.collect()
    return sum(1 for x in gc.get_objects() if issubclass(type(x), Tensor))
