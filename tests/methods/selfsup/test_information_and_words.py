"""Deep InfoMax's estimators, and bags of visual words."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.vocabulary import Vocabulary, k_means, nearest
from methods.selfsup import bag_of_words, deep_infomax
from methods.training import Training
from methods.world import World

Make = Callable[..., Training]
Data = Callable[..., TrainData]


def by_loops(scores: Tensor, estimator: str) -> float:
    b, g, places = scores.shape
    s = scores.tolist()
    own = [(i, p) for i in range(b) for p in range(places)]
    others = [(i, j, p) for i in range(b) for j in range(g) for p in range(places) if i != j]
    if estimator == "infonce":
        terms = [-s[i][i][p] + math.log(sum(math.exp(s[i][j][p]) for j in range(g))) for i, p in own]
        return sum(terms) / len(terms)
    if estimator == "jsd":
        joint = sum(math.log1p(math.exp(-s[i][i][p])) for i, p in own) / len(own)
        return joint + sum(math.log1p(math.exp(s[i][j][p])) for i, j, p in others) / len(others)
    joint = sum(s[i][i][p] for i, p in own) / len(own)
    return -joint + math.log(sum(math.exp(s[i][j][p]) for i, j, p in others) / len(others))


@pytest.mark.parametrize("estimator", ["infonce", "jsd", "dv"])
def test_estimators_are_their_formulas(estimator: str) -> None:
    scores = torch.randn(4, 4, 3, dtype=torch.float64)
    value = deep_infomax.negative_information(scores, estimator, 0, World())
    assert value.item() == pytest.approx(by_loops(scores, estimator), rel=1e-6)


@pytest.mark.parametrize("estimator", ["infonce", "jsd", "dv"])
def test_own_pairs_that_score_higher_hold_more_information(estimator: str) -> None:
    scores = torch.randn(6, 6, 2)
    better = scores + 3 * torch.eye(6)[:, :, None]
    value = deep_infomax.negative_information
    assert value(better, estimator, 0, World()) < value(scores, estimator, 0, World())


@pytest.mark.parametrize("name", ["resnet_small", "conv4", "vit_tiny"])
@pytest.mark.parametrize("side", [16, 32])
def test_pooled_is_the_embedding(name: str, side: int) -> None:
    encoder = build_encoder(EncoderSpec(name), (3, side, side), (0.5,) * 3, (0.25,) * 3).eval()
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        z = deep_infomax.pooled(encoder, encoder.maps(images)[encoder.layers[-1]])
        torch.testing.assert_close(z, encoder(images), rtol=1e-4, atol=1e-5)


def test_k_means_finds_separate_clusters() -> None:
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = middles.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2)
    found = min((k_means(x, 3) for _ in range(5)), key=lambda c: float((x - c[nearest(x, c)]).square().sum()))
    order = nearest(middles, found)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found[order], middles, atol=0.1, rtol=0)


def test_bags_are_histograms_of_the_nearest_words() -> None:
    words = torch.randn(5, 3)
    maps = torch.randn(2, 3, 4, 4)
    bags = Vocabulary(words)(maps)
    for b in range(2):
        counts = [0] * 5
        for y in range(4):
            for x in range(4):
                distance = [float((maps[b, :, y, x] - w).square().sum()) for w in words]
                counts[distance.index(min(distance))] += 1
        assert (bags[b] * 16).round().tolist() == counts


def test_bag_of_words_teacher_stays_as_stage_one_left_it(train: Make, make_data: Data) -> None:
    training = train(bag_of_words.METHOD, make_data(), words=16, epochs=2, epoch_images=64)
    while training.stage_number == 0 and training.steps_done < training.stage_steps():
        training.one_step()
    teacher = {k: v.clone() for k, v in training.learner.encoder().state_dict().items()}
    training.enter(1)
    learner = training.learner
    assert isinstance(learner, bag_of_words.BagOfWords)
    words = learner.vocabulary.words.clone()
    training.one_step()
    training.one_step()
    assert all(torch.equal(v, teacher[k]) for k, v in learner.teacher.module.state_dict().items())
    assert torch.equal(learner.vocabulary.words, words)
    assert learner.encoder() is not learner.teacher.module


def test_bag_of_words_needs_as_many_places_as_words(train: Make, make_data: Data) -> None:
    training = train(bag_of_words.METHOD, make_data(8), words=4096)
    with pytest.raises(TrainingError, match=r"bag_of_words\.words must not exceed the places, \d+, got 4096"):
        training.enter(1)
