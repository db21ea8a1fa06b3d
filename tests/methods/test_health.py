"""Signs of health: the figures from their formulas, what they may touch, and who may see held-back labels."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batch import BatchSpec, Step
from methods.catalogue import CATALOGUE
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels, SharedConfig
from methods.data.records import Split
from methods.health import (
    LARGE_SAMPLE,
    SAMPLE,
    SIGNALS,
    PseudoLabelCount,
    effective_rank,
    embedding_sd,
    embedding_signals,
    sample,
    teacher_signals,
)
from methods.parts.assignments import assignments
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder, EncoderSpec, build_encoder
from methods.training import Training, TrainSettings
from methods.world import World
from search_spaces.domains import build

CPU = torch.device("cpu")


# The figures


def test_spread_of_embeddings_is_the_formula() -> None:
    z = torch.randn(7, 3)
    rows = [[float(x) / math.sqrt(sum(float(y) ** 2 for y in row)) for x in row] for row in z]
    sds = []
    for j in range(3):
        mean = sum(row[j] for row in rows) / 7
        sds.append(math.sqrt(sum((row[j] - mean) ** 2 for row in rows) / 7))
    assert embedding_sd(z) == pytest.approx(math.sqrt(3) * sum(sds) / 3, rel=1e-5)
    assert embedding_sd(100 * z) == pytest.approx(embedding_sd(z), rel=1e-5)


def test_rank_is_the_formula() -> None:
    """Orthogonal directions of lengths 3, 2 and 1."""
    z = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    shares = [3 / 6, 2 / 6, 1 / 6]
    assert effective_rank(z) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)
    turned = torch.linalg.qr(torch.randn(9, 3)).Q @ z
    assert effective_rank(7 * turned) == pytest.approx(effective_rank(z), rel=1e-4)


@pytest.mark.parametrize("constant", [torch.ones(20), torch.randn(20) * 1e-3, torch.zeros(20)])
def test_constant_embeddings_have_no_spread_and_rank_one(constant: Tensor) -> None:
    z = constant.expand(512, -1)
    assert embedding_sd(z) == pytest.approx(0, abs=1e-5)
    assert effective_rank(z) == pytest.approx(1, abs=1e-3)


def test_gaussian_embeddings_have_full_spread_and_nearly_full_rank() -> None:
    """n / D = 32: singular values lie within 1 -+ 1 / sqrt(32) of each other, which costs the entropy about 1%."""
    z = torch.randn(512, 16)
    assert embedding_sd(z) == pytest.approx(1, abs=0.02)
    assert 0.97 * 16 < effective_rank(z) <= 16
    assert effective_rank(torch.cat([z, z], dim=1)) <= 16 + 1e-3, "copies are no dimensions"


def test_embeddings_that_are_no_numbers_give_none() -> None:
    z = torch.randn(8, 4)
    z[3, 2] = math.nan
    assert math.isnan(effective_rank(z))
    assert math.isnan(embedding_sd(z))


def test_assignments_tell_both_collapses_apart() -> None:
    one_each, all_alike = torch.eye(4), torch.full((4, 4), 0.25)
    one_for_all = torch.tensor([[1.0, 0, 0, 0]]).expand(4, -1)
    found = [{k: round(float(v), 6) for k, v in assignments(p, World()).items()} for p in (one_each, all_alike, one_for_all)]
    assert [(f["assignment_entropy"], f["assignment_balance"]) for f in found] == [(0, 1), (1, 1), (0, 0)]


def test_a_teachers_distance_is_relative_to_its_student() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    teacher = Ema(student)
    holder = nn.ModuleList([student, teacher])
    assert teacher_signals(holder) == {"teacher_distance": 0}
    assert teacher_signals(student) == {}
    before = [p.detach().clone() for p in student.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.5)
    apart = math.sqrt(sum(0.25 * p.numel() for p in before))
    length = math.sqrt(sum(float((p + 0.5).square().sum()) for p in before))
    assert teacher_signals(holder)["teacher_distance"] == pytest.approx(apart / length, rel=1e-5)
    teacher.update(student, 0.5)
    assert teacher_signals(holder)["teacher_distance"] == pytest.approx(0.5 * apart / length, rel=1e-5)


def test_a_teacher_does_not_own_its_student() -> None:
    student = nn.Linear(2, 2)
    teacher = Ema(student)
    assert all(name.startswith(("module.", "own_")) for name in teacher.state_dict())
    assert all(not p.requires_grad for p in teacher.parameters())
    both = copy.deepcopy(nn.ModuleList([student, teacher]))
    assert both[1].student is both[0]


# What they touch


class Restless(Encoder):
    """Has everything that a forward pass in training mode would move."""

    layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.dim = 3
        self.map = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.float() / 255).mean((2, 3))


def test_looking_changes_neither_statistics_nor_modes_nor_random_numbers(split: Split) -> None:
    encoder, projector = Restless().train(), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    encoder.map[2].eval()
    modules = nn.ModuleList([encoder, projector])
    state, random = copy.deepcopy(modules.state_dict()), torch.get_rng_state()
    modes = [part.training for part in modules.modules()]
    first = embedding_signals(encoder, projector, sample(split.train.images), CPU)
    assert set(first) == {"embedding_sd", "effective_rank", "projection_sd", "projection_rank"}
    assert embedding_signals(encoder, projector, sample(split.train.images), CPU) == first
    assert all(torch.equal(value, state[name]) for name, value in modules.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in modules.modules()] == modes
    assert all(p.grad is None for p in modules.parameters())


def test_the_sample_is_spread_over_all_images(make_split: Callable[..., Split]) -> None:
    images = make_split(4, 200, 8, 8).train.images
    seen = sample(images)
    assert seen.shape[0] == SAMPLE
    assert torch.equal(seen[0], images.take(torch.tensor([0]))[0])
    assert torch.equal(seen[-1], images.take(torch.tensor([799]))[0])
    assert len(sample(make_split(2, 12, 4, 8).train.images)) == 24


def test_fewer_images_are_looked_at_where_the_encoder_enlarges_them(make_split: Callable[..., Split]) -> None:
    images = make_split(3, 200, 4, 8).train.images
    shape, statistics = images.shape, (0.5,) * images.shape[0]
    seen = {
        name: len(sample(images, build_encoder(EncoderSpec(name, "none"), shape, statistics, statistics)))
        for name in ("conv4", "lite0")
    }
    assert seen == {"conv4": SAMPLE, "lite0": LARGE_SAMPLE}


# Pseudo-labels


def given(index: list[int], label: list[int], used: list[float]) -> PseudoLabels:
    return PseudoLabels(torch.tensor(index), torch.tensor(label), torch.tensor(used))


def test_pseudo_labels_are_counted_over_the_epoch_and_checked_where_truth_is_known() -> None:
    count = PseudoLabelCount(4, np.array([0, -1, 2, 3, -1]), World())
    assert count.told() == ({}, ())
    count.add(given([0, 1, 2], [0, 1, 3], [1.0, 1.0, 1.0]))  # right, unknown, wrong
    count.add(given([3, 3, 4], [3, 0, 0], [1.0, 0.0, 0.0]))  # right, unused, unused
    signals, histogram = count.told()
    assert histogram == (1, 1, 0, 2)
    assert signals["mask_rate"] == 4 / 6
    assert signals["pseudo_label_accuracy"] == 2 / 3
    entropy = -sum(p * math.log(p) for p in (0.25, 0.25, 0.5))
    assert signals["pseudo_label_balance"] == pytest.approx(entropy / math.log(4))
    count.restart()
    assert count.told() == ({}, ())


def test_what_no_pseudo_label_tells_is_left_out() -> None:
    count = PseudoLabelCount(2, None, World())
    count.add(given([0, 1], [0, 1], [0.0, 0.0]))
    assert count.told() == ({"mask_rate": 0.0}, (0, 0))
    count.add(given([0, 1], [1, 1], [1.0, 1.0]))
    signals, _ = count.told()
    assert signals == {"mask_rate": 0.5, "pseudo_label_balance": 0.0}


def test_counts_are_those_of_all_workers() -> None:
    @dataclass(frozen=True)
    class Twice(World):
        def sum(self, x: Tensor) -> Tensor:
            return 2 * x

    count = PseudoLabelCount(2, np.array([0, 1]), Twice(0, 2))
    count.add(given([0, 1], [0, 0], [1.0, 1.0]))
    assert count.told() == ({"mask_rate": 1.0, "pseudo_label_balance": 0.0, "pseudo_label_accuracy": 0.5}, (4, 0))


# Training


def fixmatch(split: Split, truth: Any = None) -> Training:
    method = CATALOGUE["fixmatch"]
    config = build(method.config, {"batch_size": 8, "threshold": 0.0})
    return Training(method, config, split.train, TrainSettings(2, EncoderSpec(), 0, 64, "fp32"), truth=truth)


def reachable(thing: Any, seen: set[int], depth: int = 0) -> list[Any]:
    """Every array that can be reached by attributes and items from ``thing``."""
    if id(thing) in seen or depth > 12:
        return []
    seen.add(id(thing))
    if isinstance(thing, np.ndarray | Tensor):
        return [thing]
    inside = list(thing.values()) if isinstance(thing, dict) else list(thing) if isinstance(thing, list | tuple | set) else []
    return [found for part in [*inside, *getattr(thing, "__dict__", {}).values()] for found in reachable(part, seen, depth + 1)]


def test_truth_is_checked_beside_the_learner_which_cannot_reach_it(split: Split) -> None:
    truth = np.full(len(split.train), -1, dtype=np.int64)
    truth[split.validation.index] = split.validation.label
    training, blind = fixmatch(split, truth), fixmatch(split)
    told, untold = training.train_epoch(), blind.train_epoch()
    assert 0 <= told.parts["pseudo_label_accuracy"] <= 1
    assert {k: v for k, v in told.parts.items() if k != "pseudo_label_accuracy"} == untold.parts, "it changes nothing else"
    assert all(torch.equal(a, b) for a, b in zip(*(t.learner.state_dict().values() for t in (training, blind)), strict=True))
    held = [array for array in reachable(training, set()) if array.shape == truth.shape and bool((array == truth).all())]
    assert held, "the search below finds it where it is"
    assert not [a for a in reachable(training.learner, set()) if a.shape == truth.shape and bool((a == truth).all())]
    assert sum(told.pseudo_labels) == round(told.parts["mask_rate"] * (told.images * 3 // 4))


def test_every_epoch_tells_signals_under_declared_names(split: Split) -> None:
    parts = fixmatch(split).train_epoch().parts
    expected = {"embedding_sd", "effective_rank", "teacher_distance", "mask_rate", "pseudo_label_balance"}
    assert {name for name in parts if name in SIGNALS} == expected
    method = CATALOGUE["byol"]
    settings = TrainSettings(1, EncoderSpec(), 0, 32, "fp32")
    parts = Training(method, build(method.config, {"batch_size": 16}), split.train, settings).train_epoch().parts
    assert set(parts) - set(SIGNALS) == {"loss", "teacher_student_cosine"}
    assert 1 <= parts["projection_rank"] <= 64
    assert parts["teacher_distance"] > 0


class Collapsing(Learner):
    """Draws every embedding to one point, as a siamese network without a predictor, a stop-gradient or negatives may."""

    def __init__(self, config: SharedConfig, context: Context) -> None:
        super().__init__()
        self.backbone = context.new_encoder()
        self.head = nn.Linear(self.backbone.dim, 8)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=16)

    def loss(self, step: Step) -> Loss:
        z = self.head(self.backbone(step.from_pool().images))
        return Loss((z - 1).square().mean())

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", 1e-2, warmup=0, schedule="constant")


def test_a_collapse_is_seen_in_the_projection(split: Split) -> None:
    method = Method("collapsing", "selfsup", "none", "collapses", SharedConfig, Collapsing)
    training = Training(method, SharedConfig(), split.train, TrainSettings(3, EncoderSpec(), 0, 320, "fp32"))
    before = embedding_signals(training.learner.encoder(), training.learner.projector(), sample(split.train.images), CPU)
    parts = [training.train_epoch().parts for _ in range(3)]
    assert parts[-1]["projection_sd"] < 0.5 * before["projection_sd"]
    assert parts[-1]["projection_sd"] < 0.05
    assert parts[-1]["embedding_sd"] > 0.05, "the encoder alone would not have told"


def test_a_training_that_diverged_is_not_looked_at(split: Split) -> None:
    class Poisoned(Collapsing):
        def loss(self, step: Step) -> Loss:
            return Loss(super().loss(step).total * float("nan"))

    method = dataclasses.replace(
        Method("collapsing", "selfsup", "none", "collapses", SharedConfig, Collapsing), learner=Poisoned
    )
    report = Training(method, SharedConfig(), split.train, TrainSettings(1, EncoderSpec(), 0, 32, "fp32")).train_epoch()
    assert not report.finite
    assert set(report.parts) == {"loss"}
