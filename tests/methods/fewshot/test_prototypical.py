from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from methods.batch import EpisodeShape
from methods.fewshot.prototypical import METHOD
from methods.parts.episodes import fit_shape
from search_spaces.domains import UserError, build


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_loss_is_the_papers_formula(make, step, distance) -> None:
    learner = make(METHOD, ways=4, shots=3, queries=2, tasks=2, distance=distance, augmentation_strength=0.0, temperature=0.7)
    learner.eval()  # Embeddings by running statistics, so that images can be embedded one by one here.
    now = step(learner)
    loss = learner.loss(now).total.detach()
    z_support = [[_embed(learner, image) for image in task] for task in now.episodes.support]
    z_query = [[_embed(learner, image) for image in task] for task in now.episodes.query]
    total = 0.0
    for t in range(2):
        prototypes = []
        for n in range(4):
            members = z_support[t][n * 3 : n * 3 + 3]
            prototypes.append([sum(z[d] for z in members) / 3 for d in range(6)])
        for q, z in enumerate(z_query[t]):
            logits = [_similarity(z, prototype, distance) / 0.7 for prototype in prototypes]
            total -= logits[q // 2] - math.log(sum(math.exp(x) for x in logits))
    assert float(loss) == pytest.approx(total / (2 * 8), rel=1e-5)


@pytest.mark.parametrize("shots", [1, 2])
def test_exchanged_episodes_are_all_turns_of_who_is_shown(make, step, shots) -> None:
    knobs = {"ways": 4, "shots": shots, "queries": 2, "tasks": 2, "augmentation_strength": 0.0, "temperature": 0.05}
    learner = make(METHOD, **knobs, exchange=True).eval()  # by running statistics: one pass or many are the same
    now = step(learner)
    each = shots + 2
    both = zip(now.episodes.support.split(shots, dim=1), now.episodes.query.split(2, dim=1), strict=True)
    images = torch.stack([torch.cat(pair, dim=1) for pair in both], dim=1)  # t N K+Q C H W
    plain = make(METHOD, **knobs).eval()
    losses, accuracies = [], []
    for first in range(each):
        order = [(first + k) % each for k in range(each)]
        support, query = images[:, :, order[:shots]].flatten(1, 2), images[:, :, order[shots:]].flatten(1, 2)
        loss = plain.loss(dataclasses.replace(now, episodes=dataclasses.replace(now.episodes, support=support, query=query)))
        losses.append(loss.total.detach())
        accuracies.append(loss.parts["accuracy"])
    found = learner.loss(now)
    torch.testing.assert_close(found.total, torch.stack(losses).mean())
    torch.testing.assert_close(found.parts["accuracy"], torch.stack(accuracies).mean())
    assert len(set(map(float, losses))) == each, "turns that all were the same would show nothing"


def _embed(learner, image) -> list[float]:
    with torch.no_grad():
        return learner.encoder()(image.unsqueeze(0))[0].double().tolist()


def _similarity(a: list[float], b: list[float], distance: str) -> float:
    if distance == "euclidean":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_order_of_the_support_set_does_not_matter(make, episodes) -> None:
    learner = make(METHOD).eval()
    drawn = episodes(EpisodeShape(1, 4, 3, 2))
    z = learner.encoder()(drawn.support[0]).unsqueeze(0)
    query = learner.encoder()(drawn.query[0]).unsqueeze(0)
    order = torch.randperm(12)
    plain = learner.compare(z, drawn.support_label, query, 4)
    mixed = learner.compare(z[:, order], drawn.support_label[:, order], query, 4)
    torch.testing.assert_close(plain, mixed)


def test_it_learns(make, step) -> None:
    learner = make(METHOD, ways=5, shots=1, queries=3, augmentation_strength=0.0, temperature=0.5)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    losses, accuracies = [], []
    for number in range(40):
        loss = learner.loss(step(learner, number))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
        accuracies.append(float(loss.parts["accuracy"]))
    assert sum(accuracies[-5:]) / 5 > 0.9
    assert sum(losses[-5:]) / 5 < 0.7 * sum(losses[:2]) / 2


def test_turned_classes_turn_support_and_query_alike(make, episodes) -> None:
    learner = make(METHOD, ways=4, shots=2, queries=3, rotations=True, augmentation_strength=0.0)
    drawn = episodes(EpisodeShape(2, 4, 2, 3))
    views = learner.views(drawn)
    seen = set()
    for t in range(2):
        for n in range(4):
            originals = torch.cat([drawn.support[t, n * 2 : n * 2 + 2], drawn.query[t, n * 3 : n * 3 + 3]]).float() / 255
            turned = torch.cat([views.support[t, n * 2 : n * 2 + 2], views.query[t, n * 3 : n * 3 + 3]])
            fits = [k for k in range(4) if torch.allclose(torch.rot90(originals, k, (2, 3)), turned)]
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) > 1


def test_augmentation_differs_between_images_and_does_not_depend_on_the_other_workers(make, episodes) -> None:
    learner = make(METHOD, ways=4, shots=2, queries=2)
    shape = EpisodeShape(4, 4, 2, 2)
    whole = learner.views(episodes(shape))
    halves = [learner.views(episodes(shape, rows)) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat([half.query for half in halves]), whole.query)
    torch.testing.assert_close(torch.cat([half.support for half in halves]), whole.support)
    noise = (whole.query - episodes(shape).query.float() / 255).flatten(0, 1).flatten(1)
    assert len({tuple(row[:3].tolist()) for row in noise}) == len(noise)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([20] * 30, (20, 1, 5)),  # nothing to fit
        ([20] * 10, (10, 1, 5)),  # fewer classes than ways
        ([4] * 30, (20, 1, 3)),  # fewer queries
        ([2] * 30, (20, 1, 1)),
        ([20] * 10 + [3] * 10 + [1] * 9, (20, 1, 2)),  # classes with one image are left out
    ],
)
def test_episodes_fit_the_data(counts, expected) -> None:
    shape = fit_shape(build(METHOD.config, {}), counts)
    assert (shape.ways, shape.shots, shape.queries) == expected


def test_shots_yield_only_where_queries_cannot() -> None:
    assert fit_shape(build(METHOD.config, {"shots": 5}), [4] * 20).shots == 3
    assert [fit_shape(build(METHOD.config, {"tasks": 3}), [4] * 20, workers=n).tasks for n in (1, 2, 4)] == [3, 4, 4]


@pytest.mark.parametrize("counts", [[], [9], [1, 1, 1], [5, 1]])
def test_too_few_classes_are_one_clear_line(counts) -> None:
    with pytest.raises(UserError, match=r"at least 2 classes with 2 labelled images each, got [01]"):
        fit_shape(build(METHOD.config, {}), counts)


def test_within_groups_at_least_half_of_the_groups_take_part() -> None:
    config = build(METHOD.config, {"within_group": True})
    shape = fit_shape(config, [20] * 60, groups=[[20] * 30, [20] * 16, [20] * 14])
    assert (shape.ways, shape.within_group) == (16, True)
    domains = fit_shape(config, [20] * 10, groups=[[5] * 10] * 4)  # every class lies in four groups
    assert domains.shots + domains.queries <= 5
    assert not fit_shape(config, [20] * 60).within_group  # no groups, nothing to keep within
