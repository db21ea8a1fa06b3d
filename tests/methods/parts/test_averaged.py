"""An encoder whose embedding, once trained, is the mean over views: against a loop, in both modes, and through its file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from methods.catalogue import CATALOGUE
from methods.contracts import Context, MetricLearner
from methods.data.records import ArrayImages, TrainData
from methods.parts.averaged import VIEWS, AveragedEncoder, averaged
from methods.parts.encoders import EncoderSpec, build_encoder, load_encoder, save_encoder
from methods.parts.strokes import affine, warped
from methods.world import World
from search_spaces.domains import build


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def conv4() -> nn.Module:
    torch.manual_seed(1)
    return build_encoder(EncoderSpec("conv4"), (1, 16, 16), (0.4,), (0.3,))


def test_the_embedding_is_the_mean_over_the_views(images: torch.Tensor) -> None:
    encoder = averaged(conv4(), 5).eval()
    inner = encoder.inside
    total = torch.zeros(6, encoder.dim)
    for angle, scale, right, down in VIEWS[:5]:
        turn, size = torch.tensor([math.radians(angle)]), torch.tensor([scale])
        matrix = affine(turn, torch.zeros(1), size, size, torch.tensor([[right, down]])).expand(6, 2, 3)
        total += inner(warped(images / 255, matrix))
    torch.testing.assert_close(encoder(images), total / 5, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder(images[2:3]), encoder(images)[2:3], atol=1e-5, rtol=1e-5)  # no other image matters
    assert (encoder(images) - inner(images)).abs().max() > 1e-2


def test_in_training_it_is_the_encoder_inside(images: torch.Tensor) -> None:
    encoder, twin = averaged(conv4(), 9).train(), conv4().train()
    assert torch.equal(encoder(images), twin(images))
    assert averaged(twin, 1) is twin
    assert {name.removeprefix("inside.") for name in encoder.state_dict() if name.startswith("inside.")} == set(
        twin.state_dict()
    )


def test_its_file_rebuilds_it(images: torch.Tensor, tmp_path: Path) -> None:
    encoder = averaged(conv4(), 4).eval()
    save_encoder(tmp_path / "encoder.pt", encoder)
    again = load_encoder(tmp_path / "encoder.pt")
    assert isinstance(again, AveragedEncoder)
    assert (again.views, again.shape) == (4, (1, 16, 16))
    assert torch.equal(again(images), encoder(images))


def test_a_users_own_encoder_may_be_averaged_and_is_not_nameable(tiny_encoder: nn.Module) -> None:
    encoder = averaged(tiny_encoder, 3).eval()
    assert encoder.name == ""
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize("name", ["prototypical", "matching", "metric_learning", "selfsup_fewshot"])
def test_metric_learners_offer_it_by_their_knob(name: str, images: torch.Tensor) -> None:
    label = torch.arange(6).numpy() // 2
    data = TrainData(ArrayImages(images.permute(0, 2, 3, 1).numpy()), label, 3, (0.5,), (0.3,))
    method = CATALOGUE[name]
    config = build(method.config, {"test_views": 2})
    learner = method.plan(config)[0].learner(config, Context(data, EncoderSpec("conv4"), World(), 0, build_encoder))
    assert isinstance(learner, MetricLearner)
    assert isinstance(learner.encoder(), AveragedEncoder)
