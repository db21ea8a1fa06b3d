"""Methods that compare embeddings: matching, siamese, and the two that fit a new head for every task."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from methods.batch import EpisodeShape
from methods.fewshot import cosine_classifier, finetune_baseline, matching, prototypical, siamese
from methods.parts.support_heads import cosine_logits, linear_logits, ridge_logits

EPISODIC = (matching.METHOD, siamese.METHOD, prototypical.METHOD)
BASE = (finetune_baseline.METHOD, cosine_classifier.METHOD)


def embeddings(tasks: int = 2, ways: int = 4, shots: int = 3, queries: int = 2, dim: int = 6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(tasks, ways, 1, dim, generator=generator)
    support = (centre + 0.3 * torch.randn(tasks, ways, shots, dim, generator=generator)).flatten(1, 2)
    query = (centre + 0.3 * torch.randn(tasks, ways, queries, dim, generator=generator)).flatten(1, 2)
    label = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    return support.to(dtype), label, query.to(dtype), torch.arange(ways).repeat_interleave(queries).expand(tasks, -1)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototypical_equals_matching_at_one_shot(make, episodes, distance) -> None:
    knobs = {"distance": distance, "temperature": 0.5}
    one, other = make(prototypical.METHOD, **knobs).eval(), make(matching.METHOD, **knobs).eval()
    probabilities = [learner.query_logits(episodes(EpisodeShape(2, 5, 1, 3))).softmax(dim=2) for learner in (one, other)]
    torch.testing.assert_close(*probabilities)
    for shots, equal in ((1, True), (3, False)):
        support, label, query, _ = embeddings(shots=shots)
        probabilities = [learner.compare(support, label, query, 4).softmax(dim=2) for learner in (one, other)]
        assert bool((probabilities[0] - probabilities[1]).abs().max() < 1e-5) == equal


def test_matching_is_attention_over_the_support_set(make) -> None:
    support, label, query, _ = embeddings()
    got = make(matching.METHOD, temperature=0.3).compare(support, label, query, 4).softmax(dim=2)
    for t in range(2):
        for q in range(8):
            cosine = [_cosine(query[t, q].double().tolist(), s) for s in support[t].double().tolist()]
            attention = [math.exp(c / 0.3) for c in cosine]
            for n in range(4):
                share = sum(a for a, k in zip(attention, label[t].tolist(), strict=True) if k == n) / sum(attention)
                assert float(got[t, q, n].detach()) == pytest.approx(share, rel=1e-4)


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_sharp_attention_keeps_its_gradient(make) -> None:
    support, label, query, target = embeddings()
    support.requires_grad_()
    logits = make(matching.METHOD, temperature=0.001).compare(support, label, query, 4)
    cross_entropy(logits.flatten(0, 1), (target.flatten() + 1) % 4).backward()
    assert torch.isfinite(logits).all()
    assert support.grad is not None
    assert torch.isfinite(support.grad).all()
    assert support.grad.abs().max() > 1


def test_context_sees_the_support_set_and_only_its_own(make) -> None:
    support, label, query, _ = embeddings()
    learner = make(matching.METHOD, context=True, context_steps=2)
    base = learner.compare(support, label, query, 4)
    other = support.clone()
    other[0, 0] += 1
    changed = learner.compare(other, label, query, 4)
    assert (changed[0, :, 1:] - base[0, :, 1:]).abs().max() > 1e-4  # Another class's scores move too.
    torch.testing.assert_close(changed[1], base[1])
    changed.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.full.parameters())


def test_siamese_scores_pairs_by_weighted_city_block_distance(make) -> None:
    support, label, query, _ = embeddings(shots=2)
    learner = make(siamese.METHOD)
    with torch.no_grad():
        learner.alpha.copy_(torch.tensor([0.5, -1.0, 2.0, -0.1, 0.3, -3.0]))
    got = learner.compare(support, label, query, 4)
    alpha = learner.alpha.double().tolist()
    for t in range(2):
        for q in range(8):
            for n in range(4):
                pairs = [
                    1 + sum(a * abs(x - y) for a, x, y in zip(alpha, query[t, q].tolist(), s.tolist(), strict=True))
                    for s, k in zip(support[t], label[t].tolist(), strict=True)
                    if k == n
                ]
                assert float(got[t, q, n].detach()) == pytest.approx(sum(pairs) / 2, rel=1e-4)


@pytest.mark.parametrize("distance", ["weighted_l1", "euclidean"])
def test_siamese_loss_weighs_same_and_different_one_half_each(make, step, distance) -> None:
    learner = make(
        siamese.METHOD, ways=4, shots=2, queries=2, tasks=1, distance=distance, augmentation_strength=0.0, margin=1.0
    )
    learner.eval()
    now = step(learner)
    loss = learner.loss(now).total.detach()
    with torch.no_grad():
        z = [learner.encoder()(images[0]).double() for images in (now.episodes.support, now.episodes.query)]
    same, different = [], []
    for i, a in enumerate(z[1]):
        for j, b in enumerate(z[0]):
            equal = bool(now.episodes.query_label[0, i] == now.episodes.support_label[0, j])
            if distance == "euclidean":
                d = float((a - b).norm())
                value = d * d if equal else max(0.0, 1 - d) ** 2
            else:
                score = float(1 - (a - b).abs().sum() / math.sqrt(6))
                value = math.log1p(math.exp(-score if equal else score))
            (same if equal else different).append(value)
    expected = 0.5 * sum(same) / len(same) + 0.5 * sum(different) / len(different)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", EPISODIC, ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [EpisodeShape(2, 3, 1, 2), EpisodeShape(1, 6, 2, 1)])
def test_any_episode_is_answered(make, episodes, method, shape) -> None:
    logits = make(method).query_logits(episodes(shape))
    assert logits.shape == (shape.tasks, shape.ways * shape.queries, shape.ways)
    assert torch.isfinite(logits).all()


def _heads():
    return {
        "linear": lambda s, y, q, n: linear_logits(s, y, q, n, 50, 0.3, 1e-3),
        "ridge": lambda s, y, q, n: ridge_logits(s, y, q, n, 1e-2),
        "cosine": lambda s, y, q, n: cosine_logits(s, y, q, n, 10, 0.03, 0.1),
    }


@pytest.mark.parametrize("head", ["linear", "ridge", "cosine"])
def test_heads_fit_each_task_by_itself(head) -> None:
    support, label, query, target = embeddings(tasks=3)
    fit = _heads()[head]
    logits = fit(support, label, query, 4)
    assert (logits.argmax(dim=2) == target).float().mean() > 0.9
    alone = torch.cat([fit(support[i : i + 1], label[i : i + 1], query[i : i + 1], 4) for i in range(3)])
    torch.testing.assert_close(alone, logits)
    with torch.inference_mode():
        torch.testing.assert_close(fit(support.clone(), label.clone(), query.clone(), 4), logits)
    scaled = fit(support * 50, label, query * 50, 4)
    torch.testing.assert_close(scaled, logits, rtol=1e-3, atol=1e-3)  # One learning rate for embeddings of any length.


def test_linear_head_descends_the_softmax_regression() -> None:
    support, label, query, _ = embeddings(tasks=1)
    x = (support - support.mean(dim=1, keepdim=True))[0].double()
    scale = x.square().sum(dim=1).mean().rsqrt()
    x = torch.cat([x * scale, torch.ones(len(x), 1)], dim=1)
    asked = torch.cat([(query - support.mean(dim=1, keepdim=True))[0].double() * scale, torch.ones(8, 1)], dim=1)
    weight = torch.zeros(7, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.3, momentum=0.9, weight_decay=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(x @ weight, label[0]).backward()
        optimizer.step()
    expected = (asked @ weight.detach()).float()
    torch.testing.assert_close(linear_logits(support, label, query, 4, 20, 0.3, 1e-3)[0], expected, rtol=1e-4, atol=1e-4)


def test_ridge_head_solves_the_normal_equations() -> None:
    support, label, query, _ = embeddings(tasks=1)
    x = (support - support.mean(dim=1, keepdim=True))[0].double()
    scale = x.square().sum(dim=1).mean().rsqrt()
    x = torch.cat([x * scale, torch.ones(len(x), 1)], dim=1)
    asked = torch.cat([(query - support.mean(dim=1, keepdim=True))[0].double() * scale, torch.ones(8, 1)], dim=1)
    target = torch.nn.functional.one_hot(label[0], 4).double()
    weight = torch.linalg.solve(x.T @ x + 0.01 * len(x) * torch.eye(7, dtype=torch.float64), x.T @ target)
    torch.testing.assert_close(ridge_logits(support, label, query, 4, 0.01)[0], (asked @ weight).float(), rtol=1e-3, atol=1e-4)


def test_cosine_head_without_steps_compares_with_the_means() -> None:
    support, label, query, _ = embeddings(shots=1)
    expected = normalize(query, dim=2) @ normalize(support, dim=2).transpose(1, 2) / 0.1
    torch.testing.assert_close(cosine_logits(support, label, query, 4, 0, 0.1, 0.1), expected)


def test_cosine_head_lowers_the_loss_on_its_support_set() -> None:
    support, label, _, _ = embeddings(tasks=1)
    losses = [float(cross_entropy(cosine_logits(support, label, support, 4, k, 0.03, 0.1)[0], label[0])) for k in (0, 10, 50)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("method", BASE, ids=lambda m: m.name)
def test_base_classifiers_learn_and_predict(make, step, method, data) -> None:
    learner = make(method, augmentation_strength=0.0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    for number in range(120):
        loss = learner.loss(step(learner, number))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    learner.eval()
    images = data.images.take(torch.arange(len(data)))
    with torch.no_grad():
        guess = learner.predictor()(images).argmax(dim=1)
    assert (guess == torch.from_numpy(data.label)).float().mean() > 0.9
