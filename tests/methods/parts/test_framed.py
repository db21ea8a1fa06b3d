"""Framed drawings: the moments against plain loops, what the frame does not see, files, and the knob in every method."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from methods import CATALOGUE
from methods.batch import RandomStream
from methods.contracts import Context
from methods.data.records import ArrayImages, TrainData
from methods.parts.augment import augmentation
from methods.parts.averaged import averaged
from methods.parts.encoders import EncoderSpec, build_encoder, load_encoder, save_encoder
from methods.parts.framed import FramedEncoder, frame_in_training
from methods.parts.framing import FAINT, SPREAD, ZOOM, framed, frames, paper_of
from methods.parts.strokes import affine, warped
from methods.world import World
from search_spaces.domains import UserError, build

LIGHT, DARK = 1.0, 0.0


def drawing(size: int = 48) -> torch.Tensor:
    """A thick hook in ink 1 on paper 0, [1, 1, H, W], off the middle."""
    x = torch.zeros(1, 1, size, size)
    x[..., 6:26, 8:12] = 1
    x[..., 22:26, 8:24] = 1
    return x


def framed_conv4(paper: float = LIGHT, size: int = 16) -> FramedEncoder:
    torch.manual_seed(0)
    return FramedEncoder(build_encoder(EncoderSpec("conv4"), (1, size, size), (abs(paper - 0.1),), (0.3,)), paper)


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_a_frame_is_centre_and_spread_of_the_ink(paper: float) -> None:
    x = np.random.default_rng(3).uniform(size=(4, 2, 9, 12))
    found = frames(torch.from_numpy(x).float(), paper)
    for picture, matrix in zip(x, found.double().numpy(), strict=True):
        total = middle_x = middle_y = 0.0
        places = []
        for row in range(9):
            for column in range(12):
                ink = max(abs((picture[0, row, column] + picture[1, row, column]) / 2 - paper) - FAINT, 0.0)
                right, down = (column + 0.5) * 2 / 12 - 1, (row + 0.5) * 2 / 9 - 1
                places.append((ink, right, down))
                total += ink
                middle_x += ink * right
                middle_y += ink * down
        middle_x, middle_y = middle_x / total, middle_y / total
        square = sum(ink * ((r - middle_x) ** 2 + (d - middle_y) ** 2) for ink, r, d in places) / total / 2
        side = min(max(math.sqrt(square) / SPREAD, ZOOM[0]), ZOOM[1])
        np.testing.assert_allclose(matrix, [[side, 0, middle_x], [0, side, middle_y]], atol=1e-5)


def test_where_and_how_large_it_was_drawn_is_not_seen() -> None:
    encoder = framed_conv4(DARK, 48).eval()
    plain, inner = drawing(), encoder.inside
    for size, shift in ((1.0, (0.1, -0.05)), (0.8, (0.0, 0.0)), (0.9, (0.05, 0.05))):
        sides = torch.tensor([size])
        other = warped(plain, affine(torch.zeros(1), torch.zeros(1), sides, sides, torch.tensor([shift])))
        apart = (framed(other, DARK) - framed(plain, DARK)).abs().mean()
        assert (other - plain).abs().mean() > 4 * apart
        assert (encoder(other) - encoder(plain)).norm() < 0.4 * (inner(other) - inner(plain)).norm()
    once = framed(plain, DARK)
    assert (once - plain).abs().mean() > 4 * (framed(once, DARK) - once).abs().mean()


def test_proportions_turns_and_ink_stay() -> None:
    plain = drawing()
    turned = framed(plain.rot90(1, (2, 3)), DARK)
    torch.testing.assert_close(turned, framed(plain, DARK).rot90(1, (2, 3)), atol=1e-4, rtol=0)
    inverted = framed(1 - plain, LIGHT)
    torch.testing.assert_close(1 - inverted, framed(plain, DARK), atol=1e-4, rtol=0)
    matrix = frames(plain, DARK)[0]
    assert matrix[0, 0] == matrix[1, 1], "one scale for both axes"
    assert matrix[0, 1] == matrix[1, 0] == 0, "neither turned nor slanted"


def test_ink_at_the_edge_is_not_drawn_on_beyond_it() -> None:
    x = torch.zeros(1, 1, 28, 28)
    x[..., 26:, 4:24] = 1  # the foot of a T, on the lower edge
    x[..., 6:26, 13:15] = 1
    for picture, paper in ((x, DARK), (1 - x, LIGHT)):
        seen = (framed(picture, paper) - paper).abs()
        side = frames(picture, paper)[0, 0, 0]
        expected = x.sum() / side.square()
        assert seen.sum() == pytest.approx(float(expected), rel=0.05), "as much ink as was there, at the frame's scale"
        assert seen[..., -1, :].max() < 0.05


def test_blank_paper_and_dots_are_not_blown_up() -> None:
    whole = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for paper in (LIGHT, DARK):
        torch.testing.assert_close(frames(torch.full((1, 1, 16, 16), paper), paper)[0], whole)
        noise = (torch.full((1, 1, 16, 16), paper) - 0.1).abs()
        torch.testing.assert_close(frames(noise, paper)[0], whole)
    dot = torch.zeros(1, 1, 32, 32)
    dot[..., 3, 28] = 1
    matrix = frames(dot, DARK)[0]
    torch.testing.assert_close(matrix, torch.tensor([[ZOOM[0], 0, 57 / 32 - 1], [0, ZOOM[0], 7 / 32 - 1]]))


def test_the_paper_is_what_most_of_an_image_is() -> None:
    assert [paper_of(mean) for mean in ((0.9,), (0.1,), (0.9, 0.8, 0.2), (0.2, 0.1, 0.9))] == [1.0, 0.0, 1.0, 0.0]


def test_bytes_and_floats_alike_and_no_other_image_matters() -> None:
    encoder = framed_conv4().eval()
    bytes_ = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(bytes_), encoder(bytes_.float() / 255))
    torch.testing.assert_close(encoder(bytes_[2:3]), encoder(bytes_)[2:3], atol=1e-5, rtol=1e-5)
    assert encoder.maps(bytes_).keys() == encoder.inside.maps(bytes_).keys() == set(encoder.layers)


@pytest.mark.parametrize("recipe", ["identity", "weak", "strokes"])
def test_in_training_the_augmentation_frames_and_the_encoder_does_not(recipe: str) -> None:
    images = (drawing(16) * 255).to(torch.uint8).expand(4, 1, 16, 16)
    first, again = (RandomStream(7, 4, slice(None), torch.device("cpu")) for _ in range(2))
    plain, framing = augmentation(recipe, flip=False), augmentation(recipe, flip=False, paper=DARK)
    assert torch.equal(framing(images, first), plain(framed(images / 255, DARK), again))
    encoder = framed_conv4(DARK).train()
    twin = framed_conv4(DARK).train().inside
    assert torch.equal(encoder(images), twin(images))
    encoder.eval()
    torch.testing.assert_close(encoder(images), encoder.inside(framed(images / 255, DARK)))


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_its_file_rebuilds_it_also_averaged_over_views(paper: float, tmp_path: Path) -> None:
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    views = FramedEncoder(averaged(framed_conv4(paper).inside, 3), paper)
    for encoder in (framed_conv4(paper).eval(), views.eval()):
        save_encoder(tmp_path / "encoder.pt", encoder)
        again = load_encoder(tmp_path / "encoder.pt")
        assert type(again) is type(encoder)
        assert torch.equal(again(images), encoder(images))
        begun = build_encoder(EncoderSpec("conv4", str(tmp_path / "encoder.pt")), (1, 16, 16), (abs(paper - 0.1),), (0.3,))
        expected = framed_conv4(paper).inside.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in begun.state_dict().items())


def test_images_that_are_no_batch_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"takes images \[B, 1, H, W\], got \[1, 16, 16\]"):
        framed_conv4().eval()(torch.zeros(1, 16, 16))


def test_a_training_whose_augmentation_does_not_frame_lets_the_encoder() -> None:
    images = drawing(16).expand(4, 1, 16, 16)
    joined = nn.Sequential(framed_conv4(DARK))
    joined.train()
    frame_in_training(joined)
    twin = framed_conv4(DARK).train().inside
    assert twin.training
    assert torch.equal(joined(images), twin(framed(images, DARK)))


def test_a_users_own_encoder_may_be_framed_and_is_not_nameable(tiny_encoder: nn.Module) -> None:
    encoder = FramedEncoder(tiny_encoder, LIGHT)
    assert encoder.name == ""
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize("paper", [LIGHT, DARK])
@pytest.mark.parametrize("name", [m.name for m in CATALOGUE.values() if m.family == "fewshot"])
def test_every_few_shot_method_offers_it_by_its_knob(name: str, paper: float) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1)).astype(np.uint8)
    data = TrainData(ArrayImages(images), np.arange(12) // 4, 3, (abs(paper - 0.1),), (0.3,))
    method = CATALOGUE[name]
    for on in (False, True):
        config = build(method.config, {"framed": on})
        learner = method.plan(config)[0].learner(config, Context(data, EncoderSpec("conv4"), World(), 0, build_encoder))
        found = [module for module in learner.encoder().modules() if isinstance(module, FramedEncoder)]
        assert [module.paper for module in found] == [paper] * int(on)
        augment = learner.views.augment if hasattr(learner, "views") else learner.augment
        assert augment.paper == (paper if on else None), "in training nothing else frames"
