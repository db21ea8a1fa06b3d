"""VAT: the power iteration finds a direction worse than random ones; formula; statistics left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.parts.adversarial import adversarial_direction, unit
from methods.parts.losses import kl
from methods.parts.modes import still_statistics
from methods.semisup import vat


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_direction_is_worse_than_fifty_random_ones(harness: Any, iterations: int) -> None:
    """On a real convolutional encoder: for the batch as a whole, and on at least four of five single images."""
    h = harness(vat, flat=False, size=16, batch_size=8, mu=1)
    step = h.step()
    learner, pool = h.learner, step.from_pool()
    model = learner.model.eval()
    images = learner.augment(pool.images, pool.stream)
    with torch.no_grad():
        logits = model(images)
    d = adversarial_direction(model, images, logits, learner.scale, 1.0, iterations, (pool.stream,))
    torch.testing.assert_close(d.flatten(1).norm(dim=1), torch.ones(len(images)))
    length = 2.0 * learner.scale
    with torch.no_grad():
        worst = kl(logits, model(images + length * d))
        g = torch.Generator().manual_seed(0)
        randoms = [kl(logits, model(images + length * unit(torch.randn(images.shape, generator=g)))) for _ in range(50)]
    best_random = torch.stack(randoms).amax(0)
    assert worst.mean() > 2 * torch.stack(randoms).mean(1).max()
    assert (worst > best_random).float().mean() >= 0.8


def test_more_iterations_do_not_find_a_better_prediction(harness: Any) -> None:
    h = harness(vat, flat=False, size=16, batch_size=8, mu=1)
    pool, model = h.step().from_pool(), h.learner.model.eval()
    images = h.learner.augment(pool.images, pool.stream)
    with torch.no_grad():
        logits = model(images)
    found = []
    for iterations in (0, 1, 4):
        d = adversarial_direction(model, images, logits, h.learner.scale, 1.0, iterations, (pool.stream,))
        with torch.no_grad():
            found.append(kl(logits, model(images + h.learner.scale * d)).mean().item())
    assert found[0] < found[1] < found[2]


def test_loss_equals_plain_loops(harness: Any, loops: Any) -> None:
    h = harness(vat, mu=2, eps=3.0, weight=0.8, entropy_weight=0.3)
    step = h.step()
    loss = h.loss(step)
    x, u = h.of("augment")
    model, images = h.learner.model, torch.cat([x, u])
    draws = step.from_labelled().stream.fork("direction"), step.from_pool().stream.fork("direction")
    d = adversarial_direction(model, images, model(images), h.learner.scale, 1.0, 1, draws)
    clean, worst = loops.rows(model, images), loops.rows(model, images + 3.0 * h.learner.scale * d)
    label = step.from_labelled().labels().tolist()
    supervised = loops.mean([loops.cross_entropy(clean[i], label[i]) for i in range(4)])
    p = [loops.softmax(row) for row in clean]
    divergence = loops.mean([loops.cross_entropy(w, t) - loops.entropy(t) for w, t in zip(worst, p, strict=True)])
    entropy = loops.mean([loops.entropy(t) for t in p[4:]])
    assert divergence > 0
    assert loss.total.item() == pytest.approx(supervised + 0.8 * divergence + 0.3 * entropy, rel=1e-4)


def test_eps_is_a_length_in_standardised_images_of_any_size(harness: Any) -> None:
    """A 3 x 8 x 8 image has 1/16 of the numbers of a 3 x 32 x 32 one, so a quarter of the length; std is .25."""
    h = harness(vat, size=8)
    torch.testing.assert_close(h.learner.scale.flatten(), torch.full((3,), 0.25 * 0.25))


def test_running_statistics_follow_the_clean_pass_only(harness: Any) -> None:
    h = harness(vat, flat=False, size=16)
    learner = h.learner
    bn = learner.model.encoder.bn1
    x = torch.rand(8, 3, 16, 16)
    with still_statistics(learner.model):
        assert bn.momentum == 0.0
        before = bn.running_mean.clone()
        learner.model(x)
        assert torch.equal(bn.running_mean, before)
    assert bn.momentum == 0.1
    h.loss(h.step())
    once = bn.running_mean.clone()
    bn.running_mean.copy_(before)
    with torch.no_grad():
        learner.model(torch.cat(h.of("augment")))
    torch.testing.assert_close(bn.running_mean, once)
