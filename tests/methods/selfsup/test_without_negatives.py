"""BYOL, DINO, Barlow Twins and VICReg: losses from the formula, teachers without gradient, collapse where the papers see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from methods.batch import Batch, Step
from methods.contracts import Learner
from methods.data.records import TrainData
from methods.parts.centering import Centre
from methods.parts.encoders import TokenEncoder
from methods.selfsup import barlow_twins, byol, dino, vicreg
from methods.selfsup.shared import two_views
from methods.training import Training
from methods.world import World

Make = Callable[..., Training]
Data = Callable[..., TrainData]


def test_byol_regression_is_the_formula() -> None:
    p, t = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = 0.0
    for i in range(5):
        a, b = p[i] / p[i].norm(), t[i] / t[i].norm()
        expected += sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
    assert float(byol.regression(p, t)) == pytest.approx(expected / 5, rel=1e-6)


def test_byol_regression_ignores_lengths_and_stops_at_the_target() -> None:
    p = torch.randn(5, 4, requires_grad=True)
    t = torch.randn(5, 4, requires_grad=True)
    loss = byol.regression(p, t)
    torch.testing.assert_close(byol.regression(3 * p, 0.1 * t), loss)
    loss.backward()  # type: ignore[no-untyped-call]
    assert t.grad is None
    assert p.grad is not None


@pytest.mark.parametrize("method", [byol.METHOD, dino.METHOD], ids=lambda m: m.name)
def test_teachers_get_no_gradient_and_follow_by_their_momentum(train: Make, make_data: Data, method: Any) -> None:
    training = train(method, make_data(), momentum=0.9)
    learner = training.learner
    teacher, student = (learner.target, learner.online) if method is byol.METHOD else (learner.teacher, learner.student)
    before = {k: v.clone() for k, v in teacher.module.named_parameters()}
    training.one_step()
    learner.loss(training.step_at(1, 0.5)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    now, own = dict(teacher.module.named_parameters()), dict(student.named_parameters())
    for name, old in before.items():
        torch.testing.assert_close(now[name], 0.9 * old + 0.1 * own[name].detach(), rtol=1e-4, atol=1e-6)


def test_byol_loss_is_both_orders_of_the_views(
    train: Make, make_data: Data, make_batch: Callable[..., Batch], make_step: Callable[..., Step]
) -> None:
    data = make_data()
    learner = train(byol.METHOD, data).learner
    assert isinstance(learner, byol.BYOL)
    learner.eval()
    total = learner.loss(make_step(make_batch(data, [0, 1, 2, 3]))).total
    one, two = two_views(learner.augment, make_batch(data, [0, 1, 2, 3]))
    first = byol.regression(learner.predict(learner.online(one)), learner.target(two))
    second = byol.regression(learner.predict(learner.online(two)), learner.target(one))
    torch.testing.assert_close(total, first + second)


def test_dino_distillation_is_the_formula() -> None:
    student = [torch.randn(3, 6, dtype=torch.float64).log_softmax(1) for _ in range(4)]
    teacher = [torch.randn(3, 6, dtype=torch.float64).softmax(1) for _ in range(2)]
    terms = [
        -sum(float(teacher[i][b, k]) * float(student[j][b, k]) for k in range(6))
        for i in range(2)
        for j in range(4)
        if i != j
        for b in range(3)
    ]
    assert len(terms) == 6 * 3
    assert float(dino.distillation(student, teacher)) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_centre_is_a_running_mean_of_scores() -> None:
    centre = Centre(3)
    scores = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    centre.update(scores, 0.9, World())
    centre.update(scores, 0.9, World())
    torch.testing.assert_close(centre.mean, torch.full((3,), 2 * (1 - 0.81)))
    torch.testing.assert_close(centre(scores), scores - centre.mean)


def test_dino_shows_attention_of_a_transformer_whose_class_token_it_trains(
    train: Make, make_data: Data, make_batch: Callable[..., Batch]
) -> None:
    data = make_data()
    learner = train(dino.METHOD, data, "vit_tiny", local_crops=1).learner
    backbone = learner.encoder()
    assert isinstance(backbone, TokenEncoder)
    assert backbone.pool == "cls"
    picture = learner.pictures(make_batch(data, [0, 1]))["original | attention of each head"]
    assert picture.shape == (2, 3, 16, 16 * (1 + backbone.heads))


def test_barlow_twins_is_the_formula(
    train: Make, make_data: Data, make_batch: Callable[..., Batch], make_step: Callable[..., Step]
) -> None:
    data = make_data()
    learner = train(barlow_twins.METHOD, data, head_width=4).learner
    assert isinstance(learner, barlow_twins.BarlowTwins)
    total = learner.loss(make_step(make_batch(data, list(range(8))))).total
    z = learner.head(learner.backbone(torch.cat(two_views(learner.augment, make_batch(data, list(range(8))))))).detach()
    one, two = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z.double().chunk(2))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            c = sum(float(one[b, i]) * float(two[b, j]) for b in range(8)) / 8
            expected += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_vicreg_is_the_formula(
    train: Make, make_data: Data, make_batch: Callable[..., Batch], make_step: Callable[..., Step]
) -> None:
    data = make_data()
    learner = train(vicreg.METHOD, data, head_width=3, weight=10.0, variance=0.5, covariance_weight=2.0).learner
    assert isinstance(learner, vicreg.VICReg)
    total = learner.loss(make_step(make_batch(data, list(range(6))))).total
    z = learner.head(learner.backbone(torch.cat(two_views(learner.augment, make_batch(data, list(range(6)))))))
    views = [x.tolist() for x in z.detach().double().chunk(2)]
    n, d = 6, 3
    s = sum((views[0][b][j] - views[1][b][j]) ** 2 for b in range(n) for j in range(d)) / (n * d)
    v = c = 0.0
    for rows in views:
        mean = [sum(row[j] for row in rows) / n for j in range(d)]
        cov = [[sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (n - 1) for j in range(d)] for i in range(d)]
        v += sum(max(0.0, 1 - math.sqrt(cov[j][j] + 1e-4)) for j in range(d)) / d
        c += sum(cov[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    assert total.item() == pytest.approx(10 * (s + 0.5 * v) + 2 * c, rel=1e-4)


# Collapse


def trained(train: Make, method: Any, data: TrainData, **values: Any) -> tuple[Learner, Mapping[str, float]]:
    """A learner after 3 epochs, and what it told of the last one."""
    training = train(method, data, epochs=3, epoch_images=1024, batch_size=32, **values)
    reports = [training.train_epoch() for _ in range(3)]
    return training.learner, reports[-1].parts


@pytest.mark.long
@pytest.mark.slow
def test_byol_collapses_without_its_predictor(train: Make, digits: TrainData) -> None:
    told = {p: trained(train, byol.METHOD, digits, predictor=p, momentum=0.9, lr=6e-3)[1] for p in (True, False)}
    assert told[False]["projection_sd"] < 0.5 * told[True]["projection_sd"], told
    assert told[False]["projection_rank"] < 0.5 * told[True]["projection_rank"], told
    # The encoder ends in batch normalisation and a ReLU: it hides the collapse, so that projections must be looked at.
    assert told[False]["embedding_sd"] > 0.5 * told[True]["embedding_sd"], told


@pytest.mark.long
@pytest.mark.slow
def test_dino_collapses_without_centring(train: Make, digits: TrainData) -> None:
    entropy = {}
    for centring in (True, False):
        training = train(
            dino.METHOD,
            digits,
            epochs=3,
            epoch_images=1024,
            batch_size=32,
            centring=centring,
            momentum=0.9,
            prototypes=64,
            head_norm=False,
            lr=6e-3,
        )
        reports = [training.train_epoch() for _ in range(3)]
        entropy[centring] = reports[-1].parts["assignment_balance"]
    # Without centring one prototype wins for all images: the entropy of the mean assignment falls.
    assert entropy[False] < 0.5 * entropy[True], entropy


@pytest.mark.long
@pytest.mark.slow
def test_vicreg_collapses_without_its_variance_term(train: Make, digits: TrainData) -> None:
    cases: dict[str, dict[str, float]] = {"paper": {}, "all weights 1": {"weight": 1.0}, "no variance": {"variance": 0.0}}
    sd = {}
    for name, values in cases.items():
        learner, _ = trained(train, vicreg.METHOD, digits, lr=8e-3, **values)
        assert isinstance(learner, vicreg.VICReg)
        learner.eval()
        with torch.no_grad():
            sd[name] = learner.head(learner.backbone(digits.images.take(torch.arange(256)))).std(0).mean().item()
    assert sd["no variance"] < 0.2 * sd["paper"], sd
    # A short training at weights (1, 1, 1) is on its way to the collapse that the paper reports after 100 epochs.
    assert sd["all weights 1"] < 0.75 * sd["paper"], sd
