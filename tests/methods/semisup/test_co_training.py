"""Co-training: who teaches whom, what is used up, and the product of both classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.parts.encoders import parameter_count
from methods.parts.heads import Classifier
from methods.parts.labelling import label_pool
from methods.semisup import co_training
from methods.semisup.co_training import most_confident
from methods.world import World
from search_spaces.domains import build


def test_most_confident_takes_the_top_k_of_the_free_ones() -> None:
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.05, 0.95], [0.7, 0.3]])
    free = torch.tensor([False, True, True, True, True])
    assert most_confident(p, free, 2, None).tolist() == [False, True, False, True, False]
    assert most_confident(p, free, 9, None).tolist() == free.tolist()
    balanced = most_confident(p, free, 2, torch.tensor([0.5, 0.5]))
    assert balanced.tolist() == [False, False, False, True, True]
    assert most_confident(p, torch.zeros(5, dtype=torch.bool), 2, torch.tensor([0.5, 0.5])).sum() == 0


def test_rounds_are_stages() -> None:
    stages = build(co_training.Config, {"rounds": 2}).plan()
    assert [s.name for s in stages] == ["labels", "round 1", "round 2"]
    assert sum(s.share for s in stages) == pytest.approx(1)


def test_each_classifier_teaches_the_other_and_images_are_used_once(harness: Any) -> None:
    """Lines 4 and 5 by hand: 16 unlabelled of 32 images, k = 4 for each classifier."""
    knobs = {"k": 0.125, "balanced": False, "mu": 1}
    first = harness(co_training, flat=False, size=16, **knobs).learner
    known = first.sets[0].clone()
    assert torch.equal(first.sets[0], first.sets[1])
    h = harness(co_training, stage=1, previous=first, flat=False, size=16, **knobs)
    one, two = label_pool(first.model, h.data.images, World()).unbind(1)
    h.loss(h.step())
    free = (known < 0).nonzero().flatten().tolist()
    for teacher, taught in ((one, 1), (two, 0)):
        top = sorted(free, key=lambda i: -teacher[i].max().item())[:4]
        new = (h.learner.sets[taught] != known).nonzero().flatten().tolist()
        assert new == sorted(top)
        assert h.learner.sets[taught][new].tolist() == teacher[new].argmax(1).tolist()
    again = harness(co_training, stage=2, previous=h.learner, flat=False, size=16, **knobs)
    used = (h.learner.sets >= 0).any(0)
    before = h.learner.sets.clone()
    again.loss(again.step())
    assert torch.equal(again.learner.sets[:, used], before[:, used])
    assert (again.learner.sets >= 0).any(0).sum() > used.sum()


def test_added_images_are_averaged_over_those_in_the_set(harness: Any, loops: Any) -> None:
    knobs = {"k": 0.125, "mu": 3}
    first = harness(co_training, flat=False, size=16, **knobs).learner
    h = harness(co_training, stage=1, previous=first, flat=False, size=16, **knobs)
    step = h.step()
    h.loss(step)
    h.learner.eval()  # rows one by one need fixed statistics
    loss = h.loss(h.step(number=1))
    step = h.step(number=1)
    x, u = h.of("augment")
    expected = 0.0
    for j in (0, 1):
        with torch.no_grad():
            rows_x, rows_u = h.learner.model(x)[:, j].tolist(), h.learner.model(u)[:, j].tolist()
        labels = step.from_labelled().labels().tolist()
        expected += loops.mean([loops.cross_entropy(r, t) for r, t in zip(rows_x, labels, strict=True)])
        target = h.learner.sets[j][step.from_pool().index].tolist()
        added = [loops.cross_entropy(r, t) for r, t in zip(rows_u, target, strict=True) if t >= 0]
        assert 0 < len(added) < 12
        expected += loops.mean(added)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    index = step.from_pool().index
    given = torch.cat([(h.learner.sets[j][index] >= 0) & (torch.from_numpy(h.data.label)[index] < 0) for j in (0, 1)])
    assert torch.equal(loss.pseudo_labels.used, given), "true labels are no pseudo-labels"


def test_the_answer_multiplies_the_probabilities_of_both(harness: Any) -> None:
    h = harness(co_training, flat=False, size=16)
    learner = h.learner.eval()
    images = h.data.images.take(torch.arange(6))
    predictor = learner.predictor()
    assert isinstance(predictor, Classifier)
    with torch.no_grad():
        one, two = learner.model(images).softmax(2).unbind(1)
        product = one * two
        torch.testing.assert_close(predictor(images).softmax(1), product / product.sum(1, keepdim=True))
    assert learner.encoder() is predictor.encoder
    assert predictor.encoder.dim == 2 * predictor.encoder.first.dim
    assert parameter_count(predictor.encoder) == 2 * parameter_count(predictor.encoder.first)
