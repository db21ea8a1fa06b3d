"""S4L: rotation and exemplar losses, and the full mix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.semisup import s4l
from methods.semisup.s4l import batch_hard_triplet
from methods.world import World


@pytest.mark.parametrize("turned_labels", [True, False])
def test_rotation_loss_equals_plain_loops(harness: Any, loops: Any, turned_labels: bool) -> None:
    h = harness(s4l, mu=2, weight=0.6, turned_labels=turned_labels)
    step = h.step()
    loss = h.loss(step)
    x, u = h.of("augment")
    encoder, model = h.learner.model.encoder, h.learner.model
    turns = [
        loops.cross_entropy(h.learner.turn_head(encoder(torch.rot90(image, k, (1, 2))[None]))[0].tolist(), k)
        for image in torch.cat([x, u])
        for k in range(4)
    ]
    labels = step.from_labelled().labels().tolist()
    classes = [
        loops.cross_entropy(loops.rows(model, torch.rot90(image, k, (1, 2))[None])[0], label)
        for image, label in zip(x, labels, strict=True)
        for k in range(4 if turned_labels else 1)
    ]
    assert len(turns) == 48
    assert loss.total.item() == pytest.approx(loops.mean(classes) + 0.6 * loops.mean(turns), rel=1e-4)


def test_batch_hard_triplet_equals_a_double_loop() -> None:
    z = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    ids = torch.tensor([3, 7, 9, 1, 3, 7, 9, 1])
    terms = []
    for i in range(8):
        distance = [math.dist(z[i].tolist(), z[j].tolist()) for j in range(8)]
        farthest = max(distance[j] for j in range(8) if ids[j] == ids[i] and j != i)
        nearest = min(distance[j] for j in range(8) if ids[j] != ids[i])
        terms.append(math.log1p(math.exp(farthest - nearest)))
    assert batch_hard_triplet(z, ids, World()).item() == pytest.approx(sum(terms) / 8, rel=1e-6)


def test_two_workers_see_each_others_negatives() -> None:
    z = F.normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    ids = torch.tensor([3, 7, 3, 7, 9, 1, 9, 1])

    @dataclass(frozen=True)
    class Two(World):
        def gather(self, x: Tensor) -> Tensor:
            return ids if x.dim() == 1 else z

    parts = [batch_hard_triplet(z[r], ids[r], Two(rank, 2)) for rank, r in ((0, slice(0, 4)), (1, slice(4, 8)))]
    torch.testing.assert_close(sum(parts) / 2, batch_hard_triplet(z, ids, World()))


def test_exemplar_uses_views_of_the_pool_and_no_turn_head(harness: Any) -> None:
    h = harness(s4l, mu=2, auxiliary="exemplar", views=3, weight=0.5)
    step = h.step()
    loss = h.loss(step)
    assert h.learner.turn_head is None
    views = h.of("views")
    assert len(views) == 3
    z = F.normalize(h.learner.model.encoder(torch.cat(views)), dim=1)
    expected = batch_hard_triplet(z, step.from_pool().index.repeat(3), World())
    x = h.of("augment")[0]
    supervised = F.cross_entropy(h.learner.model(x), step.from_labelled().labels())
    assert loss.total.item() == pytest.approx((supervised + 0.5 * expected).item(), rel=1e-5)


def test_the_full_mix_adds_vat_and_entropy(harness: Any) -> None:
    plain = harness(s4l, mu=1)
    mixed = harness(s4l, mu=1, full_mix=True, vat_weight=0.5, entropy_weight=0.25)
    mixed.learner.load_state_dict(plain.learner.state_dict())
    a, b = plain.loss(plain.step()), mixed.loss(mixed.step())
    extra = 0.5 * b.parts["divergence"] + 0.25 * b.parts["entropy"]
    torch.testing.assert_close(b.total - a.total, extra, rtol=1e-4, atol=1e-5)
    assert b.parts["divergence"] > 0
