"""Turned and mirrored classes, and episodes within groups mixed with episodes across them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.batch import Episodes, EpisodeShape, RandomStream
from methods.data.episodic import EpisodeSampler
from methods.fewshot.prototypical import METHOD
from methods.parts.compositions import Compositions, compositions
from methods.parts.episodes import fit_shape, turn_classes
from search_spaces.domains import build

SHAPE = EpisodeShape(tasks=64, ways=4, shots=1, queries=2)


def turns_of(before: Tensor, after: Tensor) -> list[int]:
    """For each image [n, C, H, W] which of the eight symmetries of a square it took: 0 .. 3, from 4 on mirrored first."""
    found = []
    for old, new in zip(before, after, strict=True):
        candidates = [image.rot90(k, dims=(1, 2)) for image in (old, old.flip(2)) for k in range(4)]
        found.append(next(k for k, candidate in enumerate(candidates) if torch.equal(candidate, new)))
    return found


@pytest.mark.parametrize("mirrors", [False, True])
@pytest.mark.parametrize("turned", ["class", "task"])
def test_who_takes_a_turn(make: Callable[..., Any], episodes: Callable[..., Episodes], turned: str, mirrors: bool) -> None:
    learner = make(METHOD, rotations=True, turned=turned, mirrors=mirrors, augmentation_strength=0.0)
    plain = episodes(SHAPE)
    seen = learner.views(plain)
    counts = np.zeros(8, dtype=int)
    varied = 0
    for task in range(SHAPE.tasks):
        support = turns_of(plain.support[task] / 255, seen.support[task])
        query = turns_of(plain.query[task] / 255, seen.query[task])
        assert [support[k] for k in plain.query_label[task].tolist()] == query, "all images of a class turn alike"
        varied += len(set(support)) > 1
        counts += np.bincount(support, minlength=8)
    assert (varied == 0) if turned == "task" else (varied > 32)
    kinds = 8 if mirrors else 4
    assert (counts[:kinds] > 0).all()
    assert counts[kinds:].sum() == 0


def test_without_rotations_nothing_turns(make: Callable[..., Any], episodes: Callable[..., Episodes]) -> None:
    plain = episodes(SHAPE)
    seen = make(METHOD, turned="task", mirrors=True, augmentation_strength=0.0).views(plain)
    assert torch.equal(seen.support, plain.support / 255)


def test_eight_symmetries_are_distinct() -> None:
    image = torch.rand(1, 1, 1, 5, 5).expand(1, 8, -1, -1, -1)
    turned = turn_classes(image, torch.arange(8)[None])[0]
    assert turns_of(image[0], turned) == list(range(8))


def test_a_share_of_the_episodes_is_drawn_across_groups() -> None:
    label = np.repeat(np.arange(24), 3)
    group = label // 8
    for across in (0.0, 0.25, 1.0):
        sampler = EpisodeSampler(label, group, EpisodeShape(400, 6, 1, 1, within_group=True, across=across), seed=0)
        support, query = sampler.indices(0)
        assert (label[support.numpy()] == label[query.numpy()]).all()
        mixed = np.mean([len(np.unique(group[task])) > 1 for task in support.numpy()])
        assert mixed == pytest.approx(across, abs=0.09)  # 4 sd of 400 draws; six of 24 hardly ever share a group
    plain = EpisodeSampler(label, group, EpisodeShape(50, 6, 1, 1, within_group=True), seed=0)
    none = EpisodeSampler(label, group, EpisodeShape(50, 6, 1, 1, within_group=True, across=0.0), seed=0)
    assert torch.equal(plain.indices(3)[0], none.indices(3)[0])


def test_the_share_is_a_function_of_the_task_and_not_of_the_worker() -> None:
    label = np.repeat(np.arange(24), 3)
    sampler = EpisodeSampler(label, label // 8, EpisodeShape(8, 6, 1, 1, within_group=True, across=0.5), seed=2)
    whole = sampler.indices(1)[0]
    assert torch.equal(torch.cat([sampler.indices(1, slice(0, 3))[0], sampler.indices(1, slice(3, 8))[0]]), whole)


def test_the_share_needs_groups() -> None:
    config = build(METHOD.config, {"within_group": True, "across": 0.5, "ways": 4})
    assert fit_shape(config, [4] * 8).across == 0
    assert fit_shape(config, [4] * 8, groups=[[4] * 4, [4] * 4]).across == 0.5


def test_composed_classes_are_two_classes_in_one_picture(make: Callable[..., Any], episodes: Callable[..., Episodes]) -> None:
    plain = episodes(SHAPE)
    views = make(METHOD, composed=0.5, augmentation_strength=0.0).views
    seen = views(plain)
    kept = (seen.support == plain.support / 255).flatten(2).all(2)  # [t, N], one shot
    assert 0.35 < kept.float().mean() < 0.65, "a share of the classes"
    asked = (seen.query == plain.query / 255).flatten(2).all(2)
    assert torch.equal(asked, kept.gather(1, plain.query_label)), "support and queries of a class alike"
    assert torch.equal(views(plain).query, seen.query)
    assert torch.equal(make(METHOD, augmentation_strength=0.0).views(plain).query, plain.query / 255)


@pytest.mark.parametrize("paper", [0.0, 1.0])
def test_parts_of_a_composition_lie_where_its_layout_says(paper: float) -> None:
    left, right = torch.tensor([[0.5, 1.0, -0.5, 0.0], [0.5, 1.0, 0.5, 0.0]])  # width, height, centre x, centre y
    layout = torch.stack([left, right]).expand(1, 2, -1, -1)
    plan = Compositions(torch.tensor([[True, False]]), torch.tensor([[1, 0]]), layout)
    ink = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, 4, 1, 1, 1).expand(1, 4, 1, 16, 16)  # drawings that fill their pictures
    label = torch.tensor([[0, 0, 1, 1]])
    seen = (paper - plan.drawn((paper - ink).abs(), label, 2, paper)).abs()
    inner = slice(2, 6)  # bicubic: the edges of a part are soft
    for k in (0, 1):
        assert seen[0, k, 0, inner, inner].allclose(ink[0, k, 0, 0, 0]), "its own drawing to the left"
        assert seen[0, k, 0, inner, 10:14].allclose(ink[0, k + 2, 0, 0, 0]), "the partner's drawing of the same number"
    assert seen[0, 2:].allclose(ink[0, 2:]), "not composed, not changed"


def test_a_step_may_compose_no_class() -> None:
    none = Compositions(torch.zeros(1, 2, dtype=torch.bool), torch.tensor([[1, 0]]), torch.rand(1, 2, 2, 4))
    images = torch.randint(0, 256, (1, 2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(none.drawn(images, torch.tensor([[0, 1]]), 1, 1.0), images / 255)


def test_layouts_keep_parts_inside_and_partners_apart() -> None:
    draws = RandomStream(3, 200, slice(0, 200), torch.device("cpu"))
    plan = compositions(5, 0.3, draws)
    size, centre = plan.layout[..., :2], plan.layout[..., 2:]
    assert (size >= 0.5).all()
    assert (centre.abs() + size <= 1 + 1e-6).all()
    assert (plan.partner != torch.arange(5)).all()
    assert torch.equal(plan.partner.sort(1).values, torch.arange(5).expand(200, -1)), "each class is a part of one other"
    half = compositions(5, 0.3, RandomStream(3, 200, slice(100, 200), torch.device("cpu")))
    assert torch.equal(half.layout, plan.layout[100:])
    assert torch.equal(half.composed, plan.composed[100:])
