"""UDA: formula, mask on the unsharpened prediction, and the annealed labelled loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.semisup import uda
from methods.semisup.uda import annealed, signal_limit
from methods.world import World


@pytest.mark.parametrize("annealing", ["none", "linear"])
def test_loss_equals_plain_loops(harness: Any, loops: Any, annealing: str) -> None:
    h = harness(uda, mu=3, threshold=0.45, sharpening_temperature=0.4, lambda_u=2.0, annealing=annealing)
    with torch.no_grad():
        h.learner.model.head.weight.mul_(4)
    step = h.step(progress=0.3)
    loss = h.loss(step)
    x, u_weak = h.of("weak")
    (u_strong,) = h.of("strong")
    model = h.learner.model
    limit = 1.0 if annealing == "none" else 0.3 * (1 - 1 / 4) + 1 / 4
    labelled = [
        loops.cross_entropy(row, label)
        for row, label in zip(loops.rows(model, x), step.from_labelled().labels().tolist(), strict=True)
        if loops.softmax(row)[label] <= limit
    ]
    supervised = sum(labelled) / max(len(labelled), 1)
    terms = []
    for weak, strong in zip(loops.rows(model, u_weak), loops.rows(model, u_strong), strict=True):
        q = loops.softmax(weak)
        powered = [value ** (1 / 0.4) for value in q]
        target = [value / sum(powered) for value in powered]
        kl = loops.cross_entropy(strong, target) - loops.entropy(target)
        terms.append(kl if max(q) >= 0.45 else 0.0)
    assert 0 < sum(term > 0 for term in terms) < 12
    assert loss.total.item() == pytest.approx(supervised + 2.0 * loops.mean(terms), rel=1e-4)


def test_the_limit_rises_from_chance_to_one_along_each_schedule() -> None:
    for schedule in ("linear", "log", "exp"):
        values = [signal_limit(schedule, t / 10, 10) for t in range(11)]
        assert values == sorted(values)
        assert values[0] == pytest.approx(0.1, abs=0.01)
        assert values[-1] == pytest.approx(1.0, abs=0.01)
    assert signal_limit("log", 0.5, 10) > signal_limit("linear", 0.5, 10) > signal_limit("exp", 0.5, 10)
    assert signal_limit("exp", 0.5, 10) == pytest.approx(0.1 + 0.9 * math.exp(-2.5))
    assert signal_limit("none", 0.0, 10) == 1.0


def test_two_workers_average_over_the_images_that_count_on_both() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.1, 0.0], [0.0, 0.2], [0.3, 0.0]])
    label = torch.tensor([0, 0, 0, 0])
    whole = annealed(logits, label, 0.8, World())
    counts = torch.tensor(3.0)

    @dataclass(frozen=True)
    class Two(World):
        def sum(self, x: Tensor) -> Tensor:
            return counts

    parts = [annealed(logits[r], label[r], 0.8, Two(rank, 2)) for rank, r in ((0, slice(0, 2)), (1, slice(2, 4)))]
    torch.testing.assert_close(sum(parts) / 2, whole)
    assert annealed(logits[:1], label[:1], 0.5, World()).item() == 0
