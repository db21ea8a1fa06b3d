"""ReMixMatch: every term by plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.parts.alignment import WINDOW
from methods.semisup import remixmatch


def test_loss_equals_plain_loops(harness: Any, loops: Any) -> None:
    knobs = {"lambda_u": 1.5, "lambda_strong": 0.4, "lambda_rotation": 0.3, "ramp": 0.8}
    h = harness(remixmatch, batch_size=2, mu=2, guesses=2, **knobs)
    past = [0.7, 0.1, 0.1, 0.1]
    h.learner.alignment.history[:6] = torch.tensor(past)
    step = h.step(6, progress=0.2)
    loss = h.loss(step)
    labelled, pool, model = step.from_labelled(), step.from_pool(), h.learner.model
    x_hat, *u_hat = h.of("strong")
    (u_weak,) = h.of("weak")
    assert len(u_hat) == 2

    raw = [loops.softmax(row) for row in loops.rows(model, u_weak)]
    # Six steps before this one are remembered, the rest of the memory is still uniform; the labels are balanced.
    mean = [(6 * past[c] + (WINDOW - 6) * 0.25) / WINDOW for c in range(4)]
    q = []
    for row in raw:
        aligned = [row[c] * 0.25 / mean[c] for c in range(4)]
        aligned = [value / sum(aligned) for value in aligned]
        powered = [value ** (1 / 0.5) for value in aligned]
        q.append([value / sum(powered) for value in powered])
    p = [[float(c == label) for c in range(4)] for label in labelled.labels().tolist()]
    everything = list(zip(x_hat, p, strict=True))
    for group in (*u_hat, u_weak):
        everything += list(zip(group, q, strict=True))
    order = torch.randperm(14, generator=labelled.stream.fork("shuffle").generator).tolist()
    shares = labelled.stream.fork("lambda").beta(0.75).tolist()
    for k in range(3):
        shares += pool.stream.fork(f"lambda {k}").beta(0.75).tolist()
    terms = []
    for i, (image, target) in enumerate(everything):
        nearer = max(shares[i], 1 - shares[i])
        other, other_target = everything[order[i]]
        (row,) = loops.rows(model, (nearer * image + (1 - nearer) * other)[None])
        terms.append(
            loops.cross_entropy(row, [nearer * a + (1 - nearer) * b for a, b in zip(target, other_target, strict=True)])
        )
    strong = loops.mean([loops.cross_entropy(row, t) for row, t in zip(loops.rows(model, u_hat[0]), q, strict=True)])
    turns = pool.stream.fork("turns").integers(4).tolist()
    turned = torch.stack([torch.rot90(image, k, (1, 2)) for image, k in zip(u_hat[0], turns, strict=True)])
    turn_rows = h.learner.rotation_head(model.encoder(turned)).tolist()
    rotation = loops.mean([loops.cross_entropy(row, k) for row, k in zip(turn_rows, turns, strict=True)])
    guessed = 1.5 * loops.mean(terms[2:]) + 0.4 * strong
    expected = loops.mean(terms[:2]) + 0.2 / 0.8 * guessed + 0.3 * rotation  # a quarter of the ramp is over
    assert loss.parts["rotation"].item() == pytest.approx(rotation, rel=1e-4)
    assert loss.parts["strong"].item() == pytest.approx(strong, rel=1e-4)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
