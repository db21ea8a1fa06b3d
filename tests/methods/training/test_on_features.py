"""Trainings of feature methods: one fit, straight to the top, on what is known of a frozen encoder."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.adapt import frozen_co_training, frozen_pseudo_label, linear_probe
from methods.adapt.shared import Frame
from methods.batch import RandomStream
from methods.catalogue import CATALOGUE
from methods.contracts import FeatureConfig, Method, TrainingError
from methods.data.folding import taken
from methods.data.records import Split
from methods.features import Features
from methods.parts.encoders import EncoderSpec
from methods.parts.mirrored import MirroredEncoder
from methods.parts.pair import CHANNELS, PairEncoder
from methods.protocols.embeddings import Embedded, embed, embed_views, recall, remember
from methods.training import FeatureTraining, TrainSettings
from methods.training.clock import Fidelity
from methods.training.feature_rows import NOISE, FeatureAugment, FeatureRows, FirstView
from search_spaces.domains import build

SETTINGS = TrainSettings(3, EncoderSpec("conv4"), precision="fp32")


def started(method: Method, split: Split, settings: TrainSettings = SETTINGS, **values: Any) -> FeatureTraining:
    return FeatureTraining(method, build(method.config, values), split.train, settings)


def test_it_goes_from_nothing_to_the_top_in_one_go(split: Split) -> None:
    training = started(linear_probe.METHOD, split)
    assert training.done == Fidelity("epochs", 0)
    report = training.train(3)
    assert training.done == report.done == Fidelity("epochs", 3)
    assert (report.epoch, training.epoch, report.images, report.steps) == (0, 0, 0, 0)
    assert report.finite
    assert 0 < report.parts["loss"] < 2
    assert started(linear_probe.METHOD, split, dataclasses.replace(SETTINGS, epochs=None, seconds=9.0)).done.unit == "seconds"


@pytest.mark.parametrize(
    ("views", "flip", "mirrored"), [("averaged", True, True), ("averaged", False, False), ("one", True, False)]
)
def test_who_averages_views_exports_an_encoder_that_does(split: Split, views: str, flip: bool, mirrored: bool) -> None:
    train = dataclasses.replace(split.train, flip=flip)
    training = FeatureTraining(linear_probe.METHOD, build(linear_probe.Config, {"views": views}), train, SETTINGS)
    training.train()
    encoder, images = training.learner.encoder(), train.images.take(torch.arange(3))
    assert isinstance(encoder, MirroredEncoder) is mirrored
    with torch.no_grad():
        plain, mirror = (training.encoder(x) for x in (images, images.flip(3)))
        torch.testing.assert_close(encoder(images), (plain + mirror) / 2 if mirrored else plain)


def test_what_is_known_is_not_embedded_again(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(linear_probe.METHOD, split)
    first.train()
    monkeypatch.setattr(type(first.encoder), "forward", lambda *_: pytest.fail("an image was embedded"))
    second = started(CATALOGUE["knn_classifier"], split)
    second.train()
    assert second.encoder is first.encoder
    index = np.arange(5)
    known = recall(first.encoder, split.train.images)
    assert known is not None
    torch.testing.assert_close(embed(first.encoder, split.train.images, index), known.values[:5, 0].float())
    both = embed(MirroredEncoder(first.encoder), split.train.images, index)
    torch.testing.assert_close(both, known.values[:5].float().mean(1))
    assert recall(copy.deepcopy(first.encoder), split.train.images) is None


def test_of_a_choice_of_known_images_nothing_is_embedded_again(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the groups that judge leave the pool, its embeddings are rows of what is known."""
    training = started(CATALOGUE["linear_probe"], split)
    whole = training.features()
    monkeypatch.setattr("methods.training.on_features.embed_views", None)
    for rows in (np.arange(0, len(split.train), 2), np.arange(1, len(split.train), 2)):
        part = dataclasses.replace(split, train=taken(split.train, rows))
        found = started(CATALOGUE["linear_probe"], part).features()
        assert torch.equal(found.values, whole.values[torch.from_numpy(rows)])
        assert torch.equal(found.label, whole.label[torch.from_numpy(rows)])
        again = started(CATALOGUE["linear_probe"], dataclasses.replace(split, train=taken(split.train, rows))).features()
        assert again.values is found.values, "taken once"
        assert again.memo is found.memo


def test_it_refuses_what_it_is_not_for(split: Split) -> None:
    with pytest.raises(TrainingError, match="supervised is trained by gradient descent"):
        FeatureTraining(CATALOGUE["supervised"], None, split.train, SETTINGS)
    training = started(linear_probe.METHOD, split)
    with pytest.raises(TrainingError, match="must be of method linear_probe, got maml"):
        training.load({"method": "maml"})
    with pytest.raises(TrainingError, match="no trial can be forked from it"):
        training.adopt({})


class OwnHead(nn.Module):
    """A layer that no file describes."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.mean.T


@dataclasses.dataclass(frozen=True)
class OwnConfig(FeatureConfig):
    pass


def own_fit(config: OwnConfig, features: Features) -> nn.Module:
    x, label = features.labelled()
    return OwnHead(torch.stack([x[label == k].mean(0) for k in range(features.classes)]))


def test_a_head_of_ones_own_is_fitted_again_where_it_is_loaded(split: Split) -> None:
    method = Method("own", "adapt", "none", "class means", OwnConfig, fit=own_fit, uses_labels=True)
    before, after = started(method, split), started(method, split)
    before.train()
    assert "layers" not in before.state()
    after.load(before.state())
    for a, b in zip(before.learner.state_dict().values(), after.learner.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_embed_views_is_embedding_one_by_one(make_split: Callable[..., Split]) -> None:
    images = make_split(4, 40).train.images
    encoder = started(linear_probe.METHOD, make_split(4, 40)).encoder
    torch.set_num_threads(2)
    done: list[int] = []
    values = embed_views(encoder, images, 2, told=done.append)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert done == sorted(done)
    assert done[-1] == len(images) == 160
    with torch.no_grad():
        x = images.take(torch.arange(160))
        torch.testing.assert_close(values[:, 0], encoder(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[:, 1], encoder(x.flip(3)), rtol=1e-4, atol=1e-5)


def features(seen: Any = "augmented") -> Features:
    values = torch.randn(40, 2, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(40).view(40, 1, 1) % 4
    label = torch.where(torch.arange(40) < 16, torch.arange(40) % 4, -1)
    return Features(values, label, 4, seen=seen)


def test_rows_of_features_stand_in_for_images() -> None:
    given = features()
    frame = Frame(given, "centre")
    rows = FeatureRows(given, frame, 2.0)
    assert rows.shape == (6, 2, 1)
    x = rows.take(torch.tensor([3, 5]))
    assert x.shape == (2, 6, 2, 1)
    torch.testing.assert_close(x[:, :, 1, 0], frame(given.values[[3, 5], 1]) / 2)


def test_augmentation_draws_a_view_and_adds_noise() -> None:
    x = torch.zeros(400, 6, 2, 1)
    x[:, :, 1] = 10
    stream = RandomStream(0, 400, slice(None), torch.device("cpu"))
    same = FeatureAugment("strong", 0.0)(x, stream)
    assert same.shape == (400, 6, 1, 1)
    assert set(same.unique().tolist()) == {0.0, 10.0}
    assert float((same == 10).float().mean()) == pytest.approx(0.5, abs=0.1)
    for recipe, part in (("strong", 1.0), ("weak", 1 / 3)):
        noisy = FeatureAugment(recipe, 1.0)(torch.zeros(400, 6, 1, 1), stream)
        assert float(noisy.square().sum(1).mean().sqrt()) == pytest.approx(NOISE * part, rel=0.1)


def test_the_pair_of_co_training_is_one_layer_on_the_features() -> None:
    """Each classifier sees every other feature; the product of both is a linear layer on all of them."""
    shape = (7, 1, 1)
    pair = PairEncoder(FirstView(shape), FirstView(shape), (0.0,) * 7, (1.0,) * 7, CHANNELS)
    layer, x = nn.Linear(14, 3), torch.randn(5, *shape)
    one, two = (e.clone() for e in pair.both(x))
    assert (one[:, 1::2] == 0).all()
    assert (two[:, 0::2] == 0).all()
    assert torch.equal(one + two, x.flatten(1))
    torch.testing.assert_close(layer(pair(x)), nn.functional.linear(x.flatten(1), pair.on_channels(layer.weight), layer.bias))


@pytest.mark.parametrize("method", [frozen_pseudo_label.METHOD, frozen_co_training.METHOD], ids=lambda m: m.name)
def test_a_row_trained_on_features_learns(split: Split, method: Method) -> None:
    training = started(method, split, steps=100)
    training.train()
    predictor = training.learner.predictor().eval()
    with torch.no_grad():
        guess = predictor(split.validation.data.images.take(torch.from_numpy(split.validation.index))).argmax(1)
    # Of 4 classes, by an encoder with fresh weights; a linear probe gets as much.
    assert float((guess.numpy() == split.validation.label).mean()) > 0.4


def test_other_embeddings_take_the_place_of_earlier_ones(split: Split) -> None:
    encoder, images = started(linear_probe.METHOD, split).encoder, split.train.images
    for value in (1.0, 2.0):
        remember(encoder, Embedded(images, torch.full((len(images), 1, encoder.dim), value)))
    found = embed(encoder, images, np.arange(2))
    assert torch.equal(found, torch.full_like(found, 2.0))
