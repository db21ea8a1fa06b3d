"""Pseudo-label: both forms, the ramp, and what a round trains on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.parts.labelling import label_pool
from methods.semisup import pseudo_label
from methods.semisup.pseudo_label import FromLabels, PseudoLabel, Round
from methods.world import World
from search_spaces.domains import build


@pytest.mark.parametrize("progress", [0.1, 0.4, 0.9])
def test_loss_equals_plain_loops(harness: Any, loops: Any, progress: float) -> None:
    h = harness(pseudo_label, mu=3, threshold=0.7, weight=2.0, start=0.2, ramp=0.4)
    with torch.no_grad():
        h.learner.model.head.weight.mul_(4)
    step = h.step(progress=progress)
    loss = h.loss(step)
    x, u = h.of("augment")
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(loops.rows(h.learner.model, x), label, strict=True)])
    terms = []
    for row in loops.rows(h.learner.model, u):
        q = loops.softmax(row)
        terms.append(-torch.tensor(max(q)).log().item() if max(q) >= 0.7 else 0.0)
    assert 0 < sum(term > 0 for term in terms) < 12
    weight = 2.0 * {0.1: 0.0, 0.4: 0.5, 0.9: 1.0}[progress]
    assert loss.total.item() == pytest.approx(supervised + weight * loops.mean(terms), rel=1e-4)


def test_the_switch_chooses_between_one_stage_and_rounds() -> None:
    assert [s.learner for s in build(pseudo_label.Config, {}).plan()] == [PseudoLabel]
    config = build(pseudo_label.Config, {"staged": True, "rounds": 3})
    assert config.threshold == 0.9
    stages = config.plan()
    assert [s.learner for s in stages] == [FromLabels, Round, Round, Round]
    assert sum(s.share for s in stages) == pytest.approx(1)


def test_a_round_learns_from_known_labels_and_confident_guesses(harness: Any, loops: Any) -> None:
    knobs = {"staged": True, "mu": 3, "threshold": 0.5, "weight": 1.5}
    first = harness(pseudo_label, **knobs).learner
    with torch.no_grad():
        first.model.head.weight.mul_(6)
    h = harness(pseudo_label, stage=1, previous=first, **knobs)
    step = h.step()
    p = label_pool(first.model, h.data.images, World()).tolist()
    known = h.data.label.tolist()
    loss = h.loss(step)
    expected = []
    for q, label in zip(p, known, strict=True):
        guess = q.index(max(q)) if max(q) >= 0.5 else -1
        expected.append(label if label >= 0 else guess)
    assert h.learner.pseudo.tolist() == expected
    assert any(e < 0 for e in expected)
    assert any(e >= 0 > k for e, k in zip(expected, known, strict=True))
    x, u = h.of("augment")
    target = [expected[i] for i in step.from_pool().index.tolist()]
    rows = loops.rows(h.learner.model, u)
    terms = [loops.cross_entropy(r, t) if t >= 0 else 0.0 for r, t in zip(rows, target, strict=True)]
    labels = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(loops.rows(h.learner.model, x), labels, strict=True)])
    assert loss.total.item() == pytest.approx(supervised + 1.5 * loops.mean(terms), rel=1e-4)
    given = loss.pseudo_labels.used > 0
    index = step.from_pool().index.tolist()
    assert given.tolist() == [expected[i] >= 0 > known[i] for i in index], "true labels are no pseudo-labels"
    before = h.learner.pseudo.clone()
    with torch.no_grad():
        h.learner.model.head.weight.mul_(-1)
    h.loss(h.step(number=1))
    assert torch.equal(before, h.learner.pseudo), "labels are guessed once a round"
