"""Temporal ensembling: the bias correction, visits, and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.semisup import temporal_ensembling
from methods.semisup.temporal_ensembling import Ensemble
from methods.world import World


def test_the_first_target_is_the_first_prediction_and_later_ones_are_corrected_averages() -> None:
    a, z = 0.6, torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(2)
    ensemble = Ensemble(4, 3, a)
    index = torch.tensor([2, 0])
    for t in range(1, 6):
        ensemble.update(index, z[t - 1], World())
        target, seen = ensemble.targets(index)
        # Z_t = (1 - a) sum_i a^(t - i) z_i, divided by 1 - a^t: weights that sum to one.
        weights = [(1 - a) * a ** (t - i) / (1 - a**t) for i in range(1, t + 1)]
        assert sum(weights) == pytest.approx(1)
        expected = sum(w * z[i].double() for i, w in enumerate(weights))
        torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(target.sum(1), torch.ones(2))
        assert seen.tolist() == [1.0, 1.0]
    assert ensemble.targets(torch.tensor([1, 3]))[1].tolist() == [0.0, 0.0]
    assert ensemble.visits.tolist() == [5, 0, 5, 0]


def test_images_visited_unequally_often_are_corrected_by_their_own_visits() -> None:
    ensemble = Ensemble(2, 2, 0.9)
    p = torch.tensor([[0.8, 0.2]])
    for _ in range(3):
        ensemble.update(torch.tensor([0]), p, World())
    ensemble.update(torch.tensor([1]), p, World())
    torch.testing.assert_close(ensemble.targets(torch.tensor([0, 1]))[0], p.repeat(2, 1))


def test_an_image_twice_in_a_batch_counts_as_one_visit_with_the_mean() -> None:
    ensemble = Ensemble(3, 2, 0.5)
    z = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    ensemble.update(torch.tensor([1, 2, 1]), z, World())
    torch.testing.assert_close(ensemble.sum, torch.tensor([[0.0, 0.0], [0.25, 0.25], [0.25, 0.25]]))
    assert ensemble.visits.tolist() == [0, 1, 1]


def test_two_workers_remember_what_one_would() -> None:
    index, z = torch.tensor([1, 2, 1, 0]), torch.rand(4, 2, generator=torch.Generator().manual_seed(0))

    @dataclass(frozen=True)
    class Two(World):
        def gather(self, x: Tensor) -> Tensor:
            return index if x.dim() == 1 else z

    whole = Ensemble(3, 2, 0.5)
    whole.update(index, z, World())
    for rank in (0, 1):
        rows = World(rank, 2).rows(4)
        part = Ensemble(3, 2, 0.5)
        part.update(index[rows], z[rows], Two(rank, 2))
        assert torch.equal(part.sum, whole.sum)
        assert torch.equal(part.visits, whole.visits)


def test_loss_equals_plain_loops_on_the_second_visit(harness: Any, loops: Any) -> None:
    h = harness(temporal_ensembling, mu=3, weight=4.0, ramp=1.0, momentum=0.6)
    step = h.step(progress=0.5)
    first = h.loss(step)
    assert first.parts["consistency"].item() == 0
    pool = step.from_pool().index.tolist()
    before = dict(zip(pool, map(loops.softmax, loops.rows(h.learner.model, h.of("augment")[1])), strict=True))
    with torch.no_grad():
        h.learner.model.head.weight.mul_(-1)
    loss = h.loss(step)
    x, u = h.of("augment")
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(loops.rows(h.learner.model, x), label, strict=True)])
    now = [loops.softmax(row) for row in loops.rows(h.learner.model, u)]
    consistency = loops.mean([loops.squared(p, before[i]) for p, i in zip(now, pool, strict=True)])
    weight = 4.0 * math.exp(-5 * 0.5**2)
    assert loss.total.item() == pytest.approx(supervised + weight * consistency, rel=1e-4)
    assert consistency > 0
