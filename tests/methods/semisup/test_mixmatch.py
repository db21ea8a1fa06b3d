"""MixMatch: Algorithm 1 walked by hand on a tiny batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.batch import RandomStream
from methods.parts.mixup import mix_all
from methods.semisup import mixmatch
from methods.world import World


def test_algorithm_1_by_hand(harness: Any, loops: Any) -> None:
    """B = 2 labelled, 2 unlabelled images, K = 2; every line in plain Python over single images."""
    temperature, k_rounds, alpha, lambda_u, ramp = 0.5, 2, 0.75, 10.0, 0.8
    knobs = {"sharpening_temperature": temperature, "guesses": k_rounds, "alpha": alpha, "lambda_u": lambda_u, "ramp": ramp}
    h = harness(mixmatch, batch_size=2, mu=1, **knobs)
    step = h.step(progress=0.2)
    loss = h.loss(step)
    labelled, pool = step.from_labelled(), step.from_pool()
    model, views = h.learner.model, h.of("augment")
    assert len(views) == 1 + k_rounds

    # 1: X with one-hot labels, U. 2 to 6: augmented images.
    x_hat = [views[0][b] for b in range(2)]
    p = [[float(c == labelled.labels()[b]) for c in range(4)] for b in range(2)]
    u_hat = [[views[1 + k][b] for k in range(k_rounds)] for b in range(2)]
    q = []
    for b in range(2):
        predictions = [loops.softmax(loops.rows(model, u_hat[b][k][None])[0]) for k in range(k_rounds)]
        q_bar = [sum(prediction[c] for prediction in predictions) / k_rounds for c in range(4)]  # 7
        powered = [value ** (1 / temperature) for value in q_bar]
        q.append([value / sum(powered) for value in powered])  # 8
    x_set = [(x_hat[b], p[b]) for b in range(2)]  # 10
    u_set = [(u_hat[b][k], q[b]) for k in range(k_rounds) for b in range(2)]  # 11
    everything = x_set + u_set
    order = torch.randperm(6, generator=labelled.stream.fork("shuffle").generator).tolist()
    w = [everything[i] for i in order]  # 12
    shares = labelled.stream.fork("lambda").beta(alpha).tolist()
    for k in range(k_rounds):
        shares += pool.stream.fork(f"lambda {k}").beta(alpha).tolist()
    mixed = []
    for i, (image, target) in enumerate(everything):  # 13 and 14
        nearer = max(shares[i], 1 - shares[i])
        other_image, other_target = w[i]
        mixed.append(
            (
                nearer * image + (1 - nearer) * other_image,
                [nearer * a + (1 - nearer) * b for a, b in zip(target, other_target, strict=True)],
            )
        )
    x_prime, u_prime = mixed[:2], mixed[2:]  # 15

    def predict(image: torch.Tensor) -> list[float]:
        return loops.rows(model, image[None])[0]

    loss_x = loops.mean([loops.cross_entropy(predict(image), target) for image, target in x_prime])
    loss_u = sum(
        sum((a - b) ** 2 for a, b in zip(loops.softmax(predict(image)), target, strict=True)) for image, target in u_prime
    ) / (4 * len(u_prime))  # 1 / (L |U'|)
    weight = lambda_u * 0.2 / 0.8
    assert loss.parts["supervised"].item() == pytest.approx(loss_x, rel=1e-5)
    assert loss.parts["unsupervised"].item() == pytest.approx(loss_u, rel=1e-4)
    assert loss.total.item() == pytest.approx(loss_x + weight * loss_u, rel=1e-5)


def test_mixed_images_stay_nearer_to_their_own_group(harness: Any) -> None:
    groups = [(torch.zeros(4, 1, 2, 2), torch.zeros(4, 3)), (torch.ones(6, 1, 2, 2), torch.ones(6, 3))]
    draws = [RandomStream(seed, n, slice(0, n), torch.device("cpu")) for seed, n in enumerate((4, 6))]
    zeros, ones = mix_all(groups, draws, 0.75, draws[0].fork("shuffle"), World())
    assert zeros[0].max() <= 0.5
    assert ones[0].min() >= 0.5
    assert torch.equal(zeros[0][:, 0, 0, 0], zeros[1][:, 0])


def test_no_gradient_flows_through_the_guesses(harness: Any) -> None:
    h = harness(mixmatch, lambda_u=1.0)
    passes: list[bool] = []
    h.learner.model.register_forward_hook(lambda module, inputs, output: passes.append(output.requires_grad))
    h.loss(h.step()).total.backward()
    assert passes == [False, True]
    assert h.learner.predictor() is h.learner.average.module
