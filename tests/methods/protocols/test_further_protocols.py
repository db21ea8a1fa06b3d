"""Fine-tuning, few labels, other data, corruptions and attacks, calibration, outliers, retrieval, zero-shot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.data.records import LabelledSubset
from methods.parts.encoders import Encoder
from methods.parts.framed import FramedEncoder
from methods.parts.framing import framed
from methods.protocols import (
    Calibration,
    Efficient,
    FineTune,
    Ood,
    Retrieval,
    Robustness,
    Trained,
    Transfer,
    ZeroShot,
    protocol,
)
from methods.protocols.fine_tune import balanced_share
from methods.protocols.other_data import auroc
from methods.protocols.reliability import calibration_error, ranking
from methods.protocols.robustness import CORRUPTIONS, SEVERITIES, attacked
from methods.world import World, synchronise_batchnorm
from search_spaces.domains import UserError


class Pooled(Encoder):
    """The 4 x 4 mean colours, times a weight that can be trained."""

    layers = ("colours",)

    def __init__(self) -> None:
        super().__init__()
        self.dim = 48
        self.mix = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = images if images.is_floating_point() else images.float() / 255
        return {"colours": nn.functional.avg_pool2d(self.norm(self.mix(x)), 4)}

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images)["colours"].flatten(1)


@pytest.fixture
def parts(make_images) -> tuple[LabelledSubset, LabelledSubset]:
    data = make_images(4, 40, noise=60)
    even, odd = np.arange(0, len(data), 2), np.arange(1, len(data), 2)
    return LabelledSubset(data, even, data.label[even]), LabelledSubset(data, odd, data.label[odd])


@pytest.fixture
def trained() -> Trained:
    return Trained(Pooled().train())


# Training on the labels


@pytest.mark.parametrize("freeze", [False, True])
def test_fine_tuning_learns_and_leaves_the_encoder_as_it_was(trained: Trained, parts, freeze: bool) -> None:
    before = {k: v.clone() for k, v in trained.encoder.state_dict().items()}
    score = FineTune(steps=30, freeze_bn=freeze).score(trained, *parts, 0)
    assert score.value > 0.6
    assert all(torch.equal(before[k], v) for k, v in trained.encoder.state_dict().items())
    assert trained.encoder.training
    tuned = score.predictor.encoder
    assert not torch.equal(tuned.mix.weight, trained.encoder.mix.weight)
    assert torch.equal(tuned.norm.running_mean, trained.encoder.norm.running_mean) == freeze
    again = FineTune(steps=30, freeze_bn=freeze).score(trained, *parts, 0)
    assert np.array_equal(score.correct, again.correct)


def test_fine_tuning_on_the_first_of_several_workers_waits_for_nobody(trained: Trained, parts) -> None:
    """Only the first worker scores, so a copy that still synchronised its batch statistics would wait for the others."""
    alone = FineTune(steps=3).score(trained, *parts, 0).correct
    synchronise_batchnorm(trained.encoder, World(rank=0, size=2))  # Without a process group a collective raises.
    shared = FineTune(steps=3).score(trained, *parts, 0).correct
    assert alone is not None
    assert shared is not None
    assert (alone != shared).mean() < 0.05


def test_fine_tuning_does_not_disturb_the_global_random_state(trained: Trained, parts) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    FineTune(steps=2).tuned(trained.encoder, parts[0], 0)
    torch.testing.assert_close(torch.rand(3), expected)


def test_fine_tuning_shows_a_framed_encoder_what_it_will_be_asked_about(parts) -> None:
    inside, shown = Pooled(), []
    inside.register_forward_pre_hook(lambda module, inputs: shown.append((module.training, inputs[0].clone())))
    FineTune(steps=2, batch=8, augmentation_strength=0.0).tuned(FramedEncoder(inside, 1.0), parts[0], 0)
    images = parts[0].data.images.take(torch.from_numpy(parts[0].index)).float() / 255
    as_it_must_be = framed(images, 1.0)
    trained_on = [x for training, x in shown if training]
    assert len(trained_on) == 2
    for x in trained_on:
        # By differences: the default takes a matrix product, whose rounding is a hundredth on some processors.
        distance = torch.cdist(x.flatten(1), as_it_must_be.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.min(dim=1).values
        assert nearest.max() < 1e-2


def test_fine_tuning_cross_validates(trained: Trained, parts) -> None:
    score = FineTune(steps=5).score(trained, parts[0], None, 0)
    assert np.array_equal(score.index, parts[0].index)
    assert score.value > 0.5


@pytest.mark.parametrize(("share", "each"), [(0.01, 1), (0.1, 2), (0.5, 10)])
def test_a_share_is_class_balanced_and_has_every_class(parts, share: float, each: int) -> None:
    few = balanced_share(parts[0], share, 0)
    assert np.bincount(few.label).tolist() == [each] * 4
    assert set(few.index) <= set(parts[0].index)
    assert np.array_equal(few.data.label[few.index], few.label)
    assert not np.array_equal(few.index, balanced_share(parts[0], share, 1).index)


@pytest.mark.parametrize("asked", [True, False])
def test_efficient_is_worse_than_all_labels_and_counts_them(trained: Trained, parts, asked: bool) -> None:
    fit, ask = parts
    ask = ask if asked else None
    few, many = (Efficient(share=share).score(trained, fit, ask, 0) for share in (0.01, 1.0))
    assert few.value < many.value
    assert few.parts["labels"] == 4
    assert few.metric == "accuracy from 1% of the labels, linear"
    assert few.n == 80


# Other data


@pytest.mark.parametrize("by", ["linear", "knn"])
def test_transfer_to_digits(trained: Trained, parts, by: str) -> None:
    score = Transfer(data="digits", by=by, labels=300, asked=200).score(trained, *parts, 0)
    assert score.n == 200
    assert score.parts["labels"] == 300
    assert score.value > 0.5  # 10 classes; the 4 x 4 pixels of a digit say much
    assert score.metric == f"accuracy on digits, {by}"


@pytest.mark.parametrize("outlier", ["msp", "energy", "knn"])
def test_noise_is_told_from_images(trained: Trained, make_images, outlier: str) -> None:
    data = make_images(4, 40, noise=10)
    even, odd = np.arange(0, 160, 2), np.arange(1, 160, 2)
    fit, ask = LabelledSubset(data, even, data.label[even]), LabelledSubset(data, odd, data.label[odd])
    score = Ood(outlier=outlier).score(trained, fit, ask, 0)
    assert score.value > 0.8
    assert score.low <= score.value <= score.high
    with pytest.raises(UserError, match="ood fits on the labels and cannot ask them too"):
        Ood().score(trained, fit, None, 0)


def test_auroc_is_the_share_of_ordered_pairs_with_delongs_interval() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 20).astype(float)
    pairs = [1.0 if o > i else 0.5 if o == i else 0.0 for i in inside for o in outside]
    value, low, high = auroc(inside, outside)
    assert value == pytest.approx(sum(pairs) / len(pairs))
    table = np.array([[1.0 if o > i else 0.5 if o == i else 0.0 for i in inside] for o in outside])
    variance = table.mean(1).var(ddof=1) / 20 + table.mean(0).var(ddof=1) / 30
    assert high - value == pytest.approx(1.959964 * math.sqrt(variance))
    assert value - low == pytest.approx(high - value)


# Robustness


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_keep_shape(name: str, parts) -> None:
    fit = parts[0]
    x = fit.data.images.take(torch.arange(20)).float() / 255
    distances = []
    for s in range(SEVERITIES):
        y = CORRUPTIONS[name](x, s, torch.Generator().manual_seed(0)).clamp(0, 1)
        assert y.shape == x.shape
        assert torch.isfinite(y).all()
        distances.append(float((y - x).square().mean()))
    assert distances[0] > 0
    assert distances[-1] > distances[0]
    assert all(b >= 0.8 * a for a, b in pairwise(distances))


class Linear(nn.Module):
    """Logits that are linear in the image, so that an attack's effect is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3 * 16 * 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.float() / 255
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("steps", [1, 10])
def test_attacks_stay_within_epsilon_and_raise_the_loss(steps: int) -> None:
    model, x, label = Linear(), torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    epsilon = 0.03
    y = attacked(model, x, label, epsilon, steps)
    assert float((y - x).abs().max()) <= epsilon + 1e-6
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    loss = nn.functional.cross_entropy
    assert loss(model(y), label) > loss(model(x), label) + 0.5
    # On a linear binary problem FGSM is the worst case: the margin falls by epsilon times the weights' absolute sum.
    two = nn.Linear(4, 2)
    inside = torch.full((1, 4), 0.5)
    found = attacked(two, inside, torch.tensor([0]), epsilon, steps)
    w = (two.weight[0] - two.weight[1]).detach()
    margin = (two(found) - two(inside)).detach() @ torch.tensor([1.0, -1.0])
    assert float(margin) == pytest.approx(-epsilon * float(w.abs().sum()), rel=1e-3)


def test_mean_error_over_all_cases(trained: Trained, parts) -> None:
    score = Robustness(corruptions=("gaussian_noise", "contrast"), severities=(1, 5)).score(trained, *parts, 0)
    assert score.each is not None
    assert score.value == pytest.approx(score.each.mean())
    assert set(score.parts) == {"clean", "gaussian_noise", "contrast", "severity/1", "severity/5"}
    assert score.value == pytest.approx((score.parts["gaussian_noise"] + score.parts["contrast"]) / 2)
    assert score.value == pytest.approx((score.parts["severity/1"] + score.parts["severity/5"]) / 2)


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_error_grows_with_epsilon(trained: Trained, parts, kind: str) -> None:
    score = Robustness(kind=kind, epsilons=(1, 8, 64), steps=4).score(trained, *parts, 0)
    curve = [score.parts["clean"], *(score.parts[f"epsilon/{e}"] for e in (1, 8, 64))]
    assert curve == sorted(curve)
    assert curve[-1] > 0.9
    assert trained.encoder.training
    assert all(p.grad is None for p in trained.encoder.parameters())


# Calibration


def test_calibration_error_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.random(200), (rng.random(200) < 0.6).astype(float)
    sure[0] = 1.0
    expected = 0.0
    for b in range(10):
        inside = [i for i in range(200) if b / 10 <= sure[i] < (b + 1) / 10 or (b == 9 and sure[i] == 1)]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(sure[i] for i in inside) / len(inside)
            expected += len(inside) / 200 * abs(gap)
    assert calibration_error(sure, right, 10) == pytest.approx(expected)


class Sure(nn.Module):
    """Always class 0, with a confidence."""

    def __init__(self, confidence: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(math.log(3 * confidence / (1 - confidence))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.logit, *[self.logit * 0] * 3]).expand(len(x), 4)


def test_overconfidence_is_the_calibration_error(trained: Trained, parts) -> None:
    for confidence, error in ((0.9, 0.65), (0.26, 0.01)):
        own = Trained(trained.encoder, predictor=Sure(confidence), uses_labels=True)
        score = Calibration().score(own, *parts, 0)
        assert score.value == pytest.approx(error, abs=1e-5)
        assert score.parts["accuracy"] == 0.25
        assert score.parts["confidence"] == pytest.approx(confidence)
        assert score.low <= score.value <= score.high
    assert Calibration().score(trained, parts[0], None, 0).n == len(parts[0])


# Retrieval


def test_ranking_is_its_definition() -> None:
    z = nn.functional.normalize(torch.randn(30, 5), dim=1)
    label = torch.randint(0, 4, (30,))
    label[0] = 9  # without a partner
    precision, first = ranking(z, label, batch=7)
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: -float(z[i] @ z[j]))
        hits = [rank for rank, j in enumerate(others, 1) if label[j] == label[i]]
        assert first[i] == (hits[0] if hits else 30)
        expected = sum((k + 1) / rank for k, rank in enumerate(hits)) / len(hits) if hits else 0
        assert precision[i] == pytest.approx(expected)


def test_retrieval_scores(trained: Trained, parts) -> None:
    by_map, by_recall = (Retrieval(metric=metric).score(trained, *parts, 0) for metric in ("map", "recall"))
    assert 0.3 < by_map.value < 1
    assert by_map.value == pytest.approx(by_recall.parts["map"])
    assert by_recall.value == pytest.approx(by_map.parts["recall_1"])
    assert by_recall.parts["recall_1"] <= by_recall.parts["recall_5"] <= by_recall.parts["recall_10"]


# Zero-shot


def test_zero_shot_asks_the_learner_for_a_classifier_of_the_names(parts) -> None:
    class Learner(nn.Module):
        def zero_shot(self, classes: Sequence[str]) -> nn.Module:
            assert list(classes) == ["class 0", "class 1", "class 2", "class 3"]
            return Sure(0.9)

    score = ZeroShot().score(Trained(Pooled(), learner=Learner()), *parts, 0)  # type: ignore[arg-type]
    assert score.value == 0.25
    with pytest.raises(UserError, match="zero_shot needs a method that learns from text, such as clip"):
        ZeroShot().score(Trained(Pooled()), *parts, 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("efficient", {"share": 0.0}, "efficient.share must lie above 0 and up to 1, got 0"),
        ("robustness", {"corruptions": ["gaussian_nose"]}, "gaussian_nose is not one; did you mean gaussian_noise"),
        ("robustness", {"severities": [0, 1]}, r"severities must be some of 1 to 5, got \[0, 1\]"),
        ("retrieval", {"metric": "mrr"}, "metric must be map or recall, got 'mrr'"),
        ("fine_tune", {"steps": 0}, "fine_tune.steps must be at least 1, got 0"),
        ("calibration", {"bins": 0}, "calibration.bins must be at least 1"),
    ],
)
def test_bad_settings_are_one_clear_line(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol(name, **settings)
