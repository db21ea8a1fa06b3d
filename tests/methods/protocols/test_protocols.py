"""predict, knn, linear and few_shot on encoders whose right answer is known."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batch import Episodes
from methods.data.records import ArrayImages, ImageSet, LabelledSubset
from methods.parts.encoders import Encoder
from methods.protocols import (
    PROTOCOLS,
    FewShot,
    Knn,
    Linear,
    Predict,
    Score,
    Trained,
    embed,
    folds,
    logits_of,
    paired_difference,
    protocol,
    wilson,
)
from methods.protocols.contract import accuracy, mean_interval, mean_score
from methods.protocols.heads import NEVER, NeighbourHead, linear_head, mlp_head
from search_spaces.domains import UserError


class Mean(Encoder):
    """The 4 x 4 mean colours of an image, and a dropout that evaluation must switch off."""

    layers = ("colours", "pixels")

    def __init__(self) -> None:
        super().__init__()
        self.dim = 48
        self.scale = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = images.float() / 255 * self.scale
        return {"colours": nn.functional.avg_pool2d(x, 4), "pixels": x}

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.maps(images)["colours"].flatten(1))


def half_and_half(data: ImageSet) -> tuple[LabelledSubset, LabelledSubset]:
    even, odd = np.arange(0, len(data), 2), np.arange(1, len(data), 2)
    return LabelledSubset(data, even, data.label[even]), LabelledSubset(data, odd, data.label[odd])


@pytest.fixture
def parts(make_images) -> tuple[LabelledSubset, LabelledSubset]:
    return half_and_half(make_images(5, 24, noise=70))


@pytest.fixture
def trained() -> Trained:
    return Trained(Mean().train())


# Embedding


def test_embed_is_the_encoder_in_evaluation_mode_and_puts_the_mode_back(trained: Trained, parts) -> None:
    encoder, fit = trained.encoder, parts[0]
    encoder.drop.eval()
    expected = encoder(fit.data.images.take(torch.from_numpy(fit.index)))
    encoder.drop.train()
    z = embed(encoder, fit.data.images, fit.index, batch=7)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    torch.testing.assert_close(z, expected.detach())
    assert encoder.training
    assert encoder.drop.training
    encoder.drop.eval()
    embed(encoder, fit.data.images, fit.index)
    assert encoder.training
    assert not encoder.drop.training


def test_embed_leaves_autocast_and_pools_layers(trained: Trained, parts) -> None:
    fit = parts[0]
    with torch.autocast("cpu", torch.bfloat16):
        z = embed(trained.encoder, fit.data.images, fit.index, layer="pixels")
    x = fit.data.images.take(torch.from_numpy(fit.index)).float() / 255
    torch.testing.assert_close(z, x.mean((2, 3)))


def test_an_unknown_layer_is_one_clear_line(trained: Trained, parts) -> None:
    with pytest.raises(UserError, match="layer must be one of this encoder's layers, colours, pixels, got 'last'"):
        Linear(layer="last").score(trained, *parts, 0)


# Heads


def test_the_linear_head_is_scikit_learns_model_with_the_standardisation_inside() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 12)) * rng.uniform(0.1, 30, 12) + 5).astype(np.float32)
    x[:, 3] = 2.5  # constant
    label = (x[:, :4].argmax(1)).astype(np.int64)
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=0.05, tol=1e-8, max_iter=5000).fit(scaler.transform(x.astype(np.float64)), label)
    head = linear_head(x, label, 4, 0.05, False, 0)
    with torch.no_grad():
        p = head(torch.from_numpy(x)).softmax(1).numpy()
    assert np.abs(p - reference.predict_proba(scaler.transform(x.astype(np.float64)))).max() < 0.02


@pytest.mark.parametrize("svm", [False, True])
def test_two_classes_get_two_logits_and_absent_ones_never_win(svm: bool) -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([1, 3], 50)
    x = (rng.normal(size=(100, 3)) + label[:, None]).astype(np.float32)
    logits = linear_head(x, label, 5, 1.0, svm, 0)(torch.from_numpy(x)).detach()
    assert logits.shape == (100, 5)
    assert (logits[:, [0, 2, 4]] == NEVER).all()
    assert (logits.argmax(1).numpy() == label).mean() > 0.9
    torch.testing.assert_close(logits[:, 1], -logits[:, 3])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_mlp_head_learns_what_no_linear_one_can(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(600, 2)).astype(np.float32)
    label = ((x[:, 0] * x[:, 1] > 0) + (classes == 3) * (x[:, 0] > 0.8)).astype(np.int64)
    mlp = mlp_head(x, label, classes, 64, 0)(torch.from_numpy(x)).argmax(1).numpy()
    linear = linear_head(x, label, classes, 1.0, False, 0)(torch.from_numpy(x)).argmax(1).numpy()
    assert (mlp == label).mean() > 0.85
    assert (linear == label).mean() < 0.75


def test_neighbours_vote_as_in_wu_2018() -> None:
    """Against a plain float64 loop."""
    x, q = torch.randn(20, 6), torch.randn(7, 6)
    label = torch.arange(20) % 3
    logits = NeighbourHead(x, label, 4, k=5, temperature=0.07)(q)
    for i in range(7):
        cosine = []
        for j in range(20):
            dot = sum(float(a) * float(b) for a, b in zip(q[i], x[j], strict=True))
            cosine.append(dot / math.sqrt(sum(float(a) ** 2 for a in q[i]) * sum(float(b) ** 2 for b in x[j])))
        votes = [0.0] * 4
        for j in sorted(range(20), key=lambda j: -cosine[j])[:5]:
            votes[int(label[j])] += math.exp(cosine[j] / 0.07)
        for c in range(4):
            expected = math.log(votes[c] / sum(votes)) if votes[c] else NEVER
            assert float(logits[i, c]) == pytest.approx(expected, abs=1e-3)


# Probes


@pytest.mark.parametrize(
    "probe", [Linear(), Linear(head="svm"), Linear(head="mlp"), Linear(tune=True), Knn(), Knn(layer="colours")]
)
@pytest.mark.parametrize("asked", [True, False])
def test_probes_score_and_hand_back_their_classifier(probe: Linear | Knn, asked: bool, trained: Trained, parts) -> None:
    fit, ask = parts
    score = probe.score(trained, fit, ask if asked else None, seed=0)
    assert score.value > (0.6 if probe.layer is None else 0.3)  # pooled over positions little is left of these images
    over = ask if asked else fit
    assert score.n == len(over)
    assert np.array_equal(score.index, over.index)
    assert score.correct is not None
    assert score.value == pytest.approx(score.correct.mean())
    assert score.low < score.value < score.high
    assert score.predictor is not None
    logits = logits_of(score.predictor, ask.data.images, ask.index)
    right = logits.argmax(1).numpy() == ask.label
    if asked:
        assert np.array_equal(right, score.correct)
    again = probe.score(trained, fit, ask if asked else None, seed=0)
    assert np.array_equal(again.correct, score.correct)
    assert trained.encoder.training


def test_cross_validation_never_asks_what_it_was_fitted_on(trained: Trained, make_images) -> None:
    """Labels drawn at random can be learned by heart by one neighbour, and by nothing honest."""
    fit = half_and_half(make_images(5, 48))[0]
    random = LabelledSubset(fit.data, fit.index, np.random.default_rng(0).permutation(fit.label))
    assert Knn(k=1).score(trained, random, random, 0).value == 1.0
    assert Knn(k=1).score(trained, random, None, 0).value < 0.4


def test_folds_are_stratified_seeded_and_hold_out_each_row_once(parts) -> None:
    fit = parts[0]
    made = folds(fit, 0)
    assert len(made) == 5
    assert sorted(np.concatenate([held for _, held in made])) == list(range(len(fit)))
    for train, held in made:
        assert set(train) | set(held) == set(range(len(fit)))
        assert not set(train) & set(held)
        assert np.bincount(fit.label[held]).max() - np.bincount(fit.label[held]).min() <= 1
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made, folds(fit, 0), strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(made, folds(fit, 1), strict=True))


def test_fewer_folds_where_a_class_has_fewer_labels(parts) -> None:
    fit = parts[0]
    few = np.concatenate([np.flatnonzero(fit.label == k)[: 3 if k == 2 else 12] for k in range(5)])
    assert len(folds(LabelledSubset(fit.data, fit.index[few], fit.label[few]), 0)) == 3
    one = np.concatenate([np.flatnonzero(fit.label == k)[: 1 if k == 2 else 12] for k in range(5)])
    with pytest.raises(UserError, match="at least 2 labels of every class, class class 2 has 1; raise the label budget"):
        folds(LabelledSubset(fit.data, fit.index[one], fit.label[one]), 0)


def test_one_class_is_one_clear_line(trained: Trained, parts) -> None:
    fit = parts[0]
    rows = np.flatnonzero(fit.label == 0)
    with pytest.raises(UserError, match="labels of at least 2 classes, got 12 labels of one"):
        Linear().score(trained, LabelledSubset(fit.data, fit.index[rows], fit.label[rows]), None, 0)


@pytest.mark.parametrize(("n", "limit"), [(250, 1.0), (10_000, 8.0)])
def test_the_linear_probe_is_fast_enough_to_score_every_rung(n: int, limit: float) -> None:
    """CPU seconds of the fit at the small encoder's width, D = 128."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % 10
    x = (rng.normal(size=(n, 128)) + rng.normal(size=(10, 128))[label] * 0.5).astype(np.float32)
    started = time.process_time()
    linear_head(x, label, 10, Linear().c, False, 0)
    assert time.process_time() - started < limit


# Predict


class Guess(nn.Module):
    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, images: Tensor) -> Tensor:
        return self.answer.expand(len(images), -1)


def test_predict_asks_the_methods_own_classifier(trained: Trained, parts) -> None:
    own = dataclasses.replace(trained, predictor=Guess(torch.tensor([0.0, 0, 1, 0, 0])), uses_labels=True)
    score = Predict().score(own, *parts, 0)
    assert score.value == pytest.approx(0.2)
    assert np.array_equal(score.correct, parts[1].label == 2)
    assert score.predictor is own.predictor
    with pytest.raises(UserError, match="predict needs labels that the method has not trained on"):
        Predict().score(own, parts[0], None, 0)
    zero_shot = dataclasses.replace(own, uses_labels=False)
    assert Predict().score(zero_shot, parts[0], None, 0).n == len(parts[0])


def test_predict_without_a_classifier_is_a_linear_probe(trained: Trained, parts) -> None:
    ours, probe = Predict().score(trained, *parts, 0), Linear().score(trained, *parts, 0)
    assert ours.protocol == "predict"
    assert np.array_equal(ours.correct, probe.correct)


# Few-shot


def test_few_shot_on_separable_classes_and_the_same_episodes_every_time(trained: Trained, parts) -> None:
    score = FewShot(ways=4, shots=2, queries=5, episodes=120).score(trained, *parts, seed=0)
    assert 0.4 < score.value < 0.9
    assert score.n == 120
    assert score.correct is None
    assert score.each is not None
    assert score.value == pytest.approx(score.each.mean())
    half = 1.98 * score.each.std(ddof=1) / math.sqrt(120)
    assert score.high - score.value == pytest.approx(half, rel=0.01)
    other_seed = FewShot(ways=4, shots=2, queries=5, episodes=120).score(trained, *parts, seed=1)
    assert np.array_equal(score.each, other_seed.each)
    shorter = FewShot(ways=4, shots=2, queries=5, episodes=60).score(trained, *parts, seed=1)
    assert np.array_equal(score.each[:60], shorter.each)
    other = FewShot(ways=4, shots=2, queries=5, episodes=120, episode_seed=1).score(trained, *parts, seed=0)
    assert not np.array_equal(score.each, other.each)


def test_few_shot_is_at_chance_on_noise(trained: Trained) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3)).astype(np.uint8)
    label = np.repeat(np.arange(5), 20)
    data = ImageSet(ArrayImages(pixels), label, tuple("abcde"))
    score = FewShot(queries=5, episodes=200).score(trained, LabelledSubset(data, np.arange(100), label), None, 0)
    assert abs(score.value - 0.2) < 0.03


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_centroid_is_its_definition(distance: str) -> None:
    """Against plain loops."""
    support, query = torch.randn(1, 6, 4), torch.randn(1, 5, 4)
    logits = FewShot(ways=2, shots=3, queries=5, distance=distance).centroid_logits(support, query)[0]
    s = support[0].double()
    q = query[0].double()
    if distance == "cosine":
        s, q = s / s.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
    for i in range(5):
        for c in range(2):
            centre = (s[3 * c] + s[3 * c + 1] + s[3 * c + 2]) / 3
            if distance == "cosine":
                expected = float(sum(q[i] * centre) / centre.norm())
            else:
                expected = -math.sqrt(float(sum((q[i] - centre) ** 2)))
            assert float(logits[i, c]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_within_groups_takes_one_groups_classes(trained: Trained, make_images) -> None:
    data = make_images(8, 12)
    everything = LabelledSubset(data, np.arange(len(data)), data.label)
    score = FewShot(ways=4, queries=3, episodes=20, within_group=True).score(trained, everything, None, 0)
    assert "within groups" in score.metric
    with pytest.raises(UserError, match="group of 5 classes, got at most 4"):
        FewShot(ways=5, queries=3, episodes=20, within_group=True).score(trained, everything, None, 0)


def test_learners_answer_episodes_their_own_way(parts) -> None:
    """A metric learner is asked to compare, any other episodic one for the logits of its queries, with gradients allowed."""
    from methods.contracts import EpisodicLearner, MetricLearner

    class Base:
        def __init__(self) -> None:
            super().__init__()
            self.f = Mean()
            self.seen: list[int] = []

        def batch_spec(self) -> None: ...
        def loss(self, step: object) -> None: ...
        def optimizer(self) -> None: ...

        def encoder(self) -> Encoder:
            return self.f

    class Metric(Base, MetricLearner):
        def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
            assert not self.training
            self.seen.append(len(support))
            centre = torch.stack([support[support_label == c].view(len(support), -1, 48).mean(1) for c in range(ways)], 1)
            return -torch.cdist(query, centre)

    class Adapting(Base, EpisodicLearner):
        def query_logits(self, episodes: Episodes) -> Tensor:
            assert not self.training
            assert torch.is_grad_enabled()
            assert episodes.support.dtype == torch.uint8
            self.seen.append(len(episodes.support))
            t, n = episodes.support.shape[:2]
            support = self.f(episodes.support.flatten(0, 1)).view(t, n, -1)
            query = self.f(episodes.query.flatten(0, 1)).view(t, -1, 48)
            centre = support.view(t, episodes.shape.ways, -1, 48).mean(2)
            return -torch.cdist(query, centre)

    asking = FewShot(ways=4, shots=2, queries=3, episodes=70, distance="euclidean")
    metric, adapting = Metric(), Adapting()
    one = asking.score(Trained(metric.f, learner=metric, uses_labels=True), *parts, 0)
    two = asking.score(Trained(adapting.f, learner=adapting, uses_labels=True), *parts, 0)
    bare = asking.score(Trained(metric.f), *parts, 0)
    assert metric.seen == [50, 20]
    assert sum(adapting.seen) == 70
    assert max(adapting.seen) <= 10
    np.testing.assert_allclose(one.each, bare.each)
    np.testing.assert_allclose(two.each, bare.each)
    assert adapting.training


# Intervals and comparisons


def test_wilson_is_the_published_formula() -> None:
    low, high = wilson(81, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))  # Newcombe 1998, table I
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1


def _score(index: np.ndarray, correct: np.ndarray) -> Score:
    return Score("predict", "accuracy", float(correct.mean()), len(index), index, correct, 0, 1, 0.0)


def test_paired_difference_takes_the_common_images_and_covers() -> None:
    index = np.arange(100)
    a, b = np.arange(100) % 2 == 0, np.arange(100) % 4 == 0
    difference = paired_difference(_score(index, a), _score(index[::-1][:80], b[::-1][:80]))
    assert difference.n == 80
    assert difference.mean == pytest.approx(a[20:].mean() - b[20:].mean())
    assert difference.distinguishable
    same = paired_difference(_score(index, a), _score(index, a))
    assert same.mean == 0
    assert same.low < 0 < same.high
    assert not same.distinguishable
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, y = rng.random(60) < 0.75, rng.random(60) < 0.6
        found = paired_difference(_score(index[:60], x), _score(index[:60], y))
        covered += found.low <= 0.15 <= found.high
    assert covered >= 400 * 0.95 - 3 * math.sqrt(400 * 0.95 * 0.05)  # at most 3 standard deviations below 95%


def test_the_mean_of_scores_weighs_parts_alike_and_its_interval_covers() -> None:
    """Parts that differ much: the interval is narrow, since it holds the spread inside the parts alone."""
    truth, random = (0.3, 0.9), np.random.default_rng(0)

    def score(p: float, n: int) -> Score:
        each = random.normal(p, 0.05, n).clip(0, 1)
        mean, low, high = mean_interval(each)
        return Score("few_shot", "accuracy", mean, n, np.arange(n), None, low, high, 1.0, each=each)

    covered, widths = 0, []
    for _ in range(200):
        parts = [score(p, n) for p, n in zip(truth, (40, 20), strict=True)]
        joint = mean_score(parts)
        assert joint.value == pytest.approx((parts[0].value + parts[1].value) / 2)
        assert (joint.n, joint.seconds, len(joint.index)) == (60, 2.0, 60)
        covered += joint.low <= 0.6 <= joint.high
        widths.append(joint.high - joint.low)
    assert 180 <= covered <= 199  # 190 expected, sd 3.1
    assert np.mean(widths) == pytest.approx(2 * 2.0 * 0.05 * math.sqrt(1 / 40 + 1 / 20) / 2, rel=0.05)
    assert mean_score(parts[:1]) is parts[0]


def test_the_mean_of_right_and_wrong_answers_keeps_them() -> None:
    parts = [accuracy("predict", "accuracy", np.arange(3), np.array(bits), 0.0) for bits in ([True] * 3, [True, False, False])]
    joint = mean_score(parts)
    assert joint.value == pytest.approx(2 / 3)
    assert joint.correct is not None
    assert joint.correct.tolist() == [True] * 4 + [False] * 2
    assert 0 <= joint.low < joint.value < joint.high <= 1
    alone = mean_score([dataclasses.replace(part, correct=None) for part in parts])
    assert (alone.low, alone.high, alone.correct) == (-math.inf, math.inf, None)


def test_unlike_scores_are_not_compared() -> None:
    a, b = _score(np.arange(5), np.ones(5, bool)), _score(np.arange(5, 9), np.ones(4, bool))
    with pytest.raises(UserError, match="none in common"):
        paired_difference(a, b)
    with pytest.raises(UserError, match="two scores of one kind"):
        paired_difference(a, dataclasses.replace(b, metric="error"))


# By name


def test_protocols_are_built_by_name_and_checked() -> None:
    assert all(kind.name == name for name, kind in PROTOCOLS.items())
    assert all(dataclasses.is_dataclass(kind) for kind in PROTOCOLS.values())
    assert protocol("few_shot", ways=20, within_group=True) == FewShot(ways=20, within_group=True)
    assert protocol("predict") == Predict()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("few_shots", {}, "few_shots is not a protocol; did you mean few_shot"),
        ("knn", {"neighbours": 3}, "knn.neighbours is not a setting; known are k, layer, temperature"),
        ("knn", {"k": 0}, "knn.k must be at least 1, got 0"),
        ("knn", {"k": "many"}, "knn.k: .*valid integer.*, got 'many'"),
        ("knn", {"temperature": 0.0}, "knn.temperature must be above 0, got 0"),
        ("linear", {"head": "tree"}, "linear.head: .*'svm'.*, got 'tree'"),
        ("few_shot", {"ways": 1}, "few_shot.ways must be at least 2, got 1"),
        ("predict", {"k": 1}, "predict.k is not a setting; predict has no settings"),
    ],
)
def test_bad_settings_are_one_clear_line(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        protocol(name, **settings)
    assert "\n" not in str(caught.value)
