"""Ladder: levels, noise, the combinator, and costs that fall at every level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from methods.batch import RandomStream
from methods.contracts import TrainingError
from methods.data.records import ArrayImages, Split, TrainData, channel_statistics
from methods.parts.encoders import EncoderSpec
from methods.semisup import ladder
from methods.semisup.ladder import Combinator, noisy
from methods.training import Training, TrainSettings
from search_spaces.domains import build


def test_combinator_equals_the_formula_and_starts_as_the_identity() -> None:
    g = Combinator(3)
    noisy_level, above = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(g(noisy_level, above), noisy_level)
    with torch.no_grad():
        g.a.normal_()
    a = g.a.view(10, 3).double().tolist()
    out = g(noisy_level, above)
    for channel in range(3):
        z, u = noisy_level[1, channel, 2, 3].item(), above[1, channel, 2, 3].item()
        b = [a[i][channel] for i in range(10)]
        m = b[0] / (1 + math.exp(-(b[1] * u + b[2]))) + b[3] * u + b[4]
        v = b[5] / (1 + math.exp(-(b[6] * u + b[7]))) + b[8] * u + b[9]
        assert out[1, channel, 2, 3].item() == pytest.approx((z - m) * v + m, rel=1e-4, abs=1e-5)


def test_noise_enters_every_normalisation_layer_and_leaves_with_the_context(harness: Any) -> None:
    h = harness(ladder, flat=False, size=16)
    model = h.learner.model.eval()
    x, stream = torch.rand(4, 3, 16, 16), (RandomStream(0, 4, slice(0, 4), torch.device("cpu")),)
    clean, _ = h.learner.levels(x)
    with noisy(model, 0.3, stream):
        dirty, _ = h.learner.levels(x)
        again, _ = h.learner.levels(x)
    after, _ = h.learner.levels(x)
    for name, a, b, c, d in zip(h.learner.names[1:], clean[1:], dirty[1:], again[1:], after[1:], strict=True):
        assert not torch.equal(a, b), name
        assert torch.equal(b, c), "noise is a function of the draws"
        assert torch.equal(a, d), name


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.BatchNorm2d(3), (400, 3, 4, 4)), (nn.GroupNorm(1, 3), (400, 3, 4, 4)), (nn.LayerNorm(3), (400, 16, 3))],
)
def test_noise_comes_before_the_layers_own_scale(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, 1.0, 5.0]))  # type: ignore[operator]
    x, stream = torch.randn(shape), (RandomStream(0, 400, slice(0, 400), torch.device("cpu")),)
    plain = model(x)
    with noisy(model, 0.3, stream):
        added = model(x) - plain
    added = added if isinstance(layer, nn.LayerNorm) else added.movedim(1, -1)
    for channel, scale in enumerate((0.0, 1.0, 5.0)):
        assert added[..., channel].std().item() == pytest.approx(0.3 * scale, rel=0.05, abs=1e-7)


def test_loss_equals_plain_loops(harness: Any, loops: Any) -> None:
    """The classes from the noisy pass; every level's mean squared distance to the clean level, weighed by its own weight."""
    h = harness(ladder, flat=False, size=16, mu=1, noise=0.4, image_weight=2.0, layer_weight=0.3, logit_weight=0.7)
    learner, passes = h.learner, []
    inner = learner.levels
    learner.levels = lambda images: passes.append(inner(images)) or passes[-1]
    step = h.step()
    loss = h.loss(step)
    (clean, clean_logits), (dirty, noisy_logits) = passes
    assert not clean_logits.requires_grad
    labels = step.from_labelled().labels().tolist()
    rows = noisy_logits[: len(labels)].tolist()
    expected = loops.mean([loops.cross_entropy(r, t) for r, t in zip(rows, labels, strict=True)])

    def standardised(level: torch.Tensor) -> torch.Tensor:
        level = level.detach().double()
        mean, variance = level.mean((0, 2, 3), keepdim=True), level.var((0, 2, 3), unbiased=False, keepdim=True)
        return (level - mean) / (variance + 1e-5).sqrt()

    rebuilt = learner.decoder([standardised(level).float() for level in dirty], noisy_logits)
    for n, (level, guess) in enumerate(zip(clean, rebuilt, strict=True)):
        weight = 2.0 if n == 0 else 0.7 if n == len(clean) - 1 else 0.3
        pairs = zip(standardised(level).flatten().tolist(), guess.double().flatten().tolist(), strict=True)
        expected += weight * loops.mean([(a - b) ** 2 for a, b in pairs])
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("encoder", ["resnet_small", "conv4", "vit_tiny"])
def test_levels_are_the_image_every_layer_and_the_logits(make_split: Callable[..., Split], encoder: str) -> None:
    config = build(ladder.Config, {"batch_size": 4})
    data = make_split(4, 8, 4, 16).train
    training = Training(ladder.METHOD, config, data, TrainSettings(1, EncoderSpec(encoder), epoch_images=16, precision="fp32"))
    learner: Any = training.learner
    levels, logits = learner.levels(torch.rand(2, 3, 16, 16))
    assert learner.names == ("image", *learner.model.encoder.layers, "logits")
    assert len(levels) == len(learner.names)
    assert levels[0].shape == (2, 3, 16, 16)
    assert levels[-1].shape == (2, 4, 1, 1)
    assert torch.equal(levels[-1].flatten(1), logits)
    parts = training.train_epoch().parts
    assert [name for name in parts if name.startswith("cost_")] == [f"cost_{name}" for name in learner.names]


def test_an_encoder_without_named_parts_is_refused(harness: Any) -> None:
    with pytest.raises(TrainingError, match="names its layers' modules"):
        harness(ladder)


@pytest.mark.slow
def test_the_decoders_costs_fall_at_every_level() -> None:
    """On real digits, whose pixels depend on each other, as those of noise do not."""
    digits = load_digits()
    pixels = (digits.images[:256] * (255 / 16)).astype(np.uint8)[..., None]
    label = np.where(np.arange(256) < 64, digits.target[:256], -1).astype(np.int64)
    images = ArrayImages(pixels)
    data = TrainData(images, label, 10, *channel_statistics(images), flip=False)
    config = build(
        ladder.Config,
        {"batch_size": 16, "lr": 0.05, "noise": 0.5, "image_weight": 10.0, "layer_weight": 1.0, "logit_weight": 1.0},
    )
    settings = TrainSettings(8, EncoderSpec("resnet_small"), epoch_images=512, precision="fp32")
    training = Training(ladder.METHOD, config, data, settings)
    first, *_, last = (training.train_epoch().parts for _ in range(8))
    for name in (name for name in first if name.startswith("cost_")):
        assert last[name] < 0.9 * first[name], (name, first[name], last[name])
