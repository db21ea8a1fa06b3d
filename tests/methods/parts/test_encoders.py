"""Encoders: shapes, normalisation, torchvision's numbers, starting weights, and the exported file."""

from __future__ import annotations

import copy
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from methods.parts.cnn import Conv4, ResNet
from methods.parts.encoders import (
    ENCODERS,
    EncoderSpec,
    build_encoder,
    load_encoder,
    parameter_count,
    save_encoder,
)
from methods.parts.heads import Classifier, save_predictor
from search_spaces.domains import UserError

SMALL = ("resnet_small", "conv4", "conv4_pyramid", "vit_tiny")
CONVOLUTIONAL = tuple(name for name in ENCODERS if name != "vit_tiny")


def _build(name: str, shape: tuple[int, int, int] = (3, 16, 16), init: str = "none", width: float = 1.0) -> Any:
    c = shape[0]
    return build_encoder(EncoderSpec(name, init), shape, (0.5, 0.4, 0.3, 0.2)[:c], (0.2, 0.3, 0.25, 0.2)[:c], width)


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_embeddings_and_maps(name: str) -> None:
    encoder = _build(name).eval()
    images = _images(2, 3, 16, 16)
    with torch.no_grad():
        z, maps = encoder(images), encoder.maps(images)
    assert z.shape == (2, encoder.dim)
    assert z.dtype == torch.float32
    assert tuple(maps) == encoder.layers
    assert all(m.dim() == 4 and len(m) == 2 for m in maps.values())
    last = maps[encoder.layers[-1]]
    pooled = last.flatten(1) if name.startswith("conv4") else last.mean((2, 3))
    torch.testing.assert_close(pooled, z)
    assert encoder.name == name
    assert encoder.shape == (3, 16, 16)


@pytest.mark.parametrize("name", ENCODERS)
def test_parts_hold_every_parameter_once(name: str) -> None:
    encoder = _build(name)
    parts = encoder.parts()
    assert tuple(parts) == encoder.layers
    held = [id(p) for modules in parts.values() for module in modules for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_bytes_and_fractions_are_the_same_images(name: str) -> None:
    encoder = _build(name).eval()
    images = _images(2, 3, 16, 16)
    torch.testing.assert_close(encoder(images), encoder(images.float() / 255), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_normalised_by_the_data(dtype: torch.dtype) -> None:
    encoder = _build("resnet_small")
    images = _images(2, 3, 16, 16)
    x = encoder.normalise(images if dtype == torch.uint8 else images.float() / 255)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(x, (images.float() / 255 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_run_channels_last(channels: int, format: torch.memory_format) -> None:
    encoder = _build("resnet_small", (channels, 16, 16))
    images = _images(2, channels, 16, 16).contiguous(memory_format=format)
    assert encoder.normalise(images).stride() == (channels * 256, 1, 16 * channels, channels)
    for value in encoder.maps(images).values():
        assert value.is_contiguous(memory_format=torch.channels_last)


def test_the_gradient_reaches_the_images() -> None:
    for channels in (1, 3):
        images = torch.rand(2, channels, 16, 16, requires_grad=True)
        _build("resnet_small", (channels, 16, 16))(images).square().sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0


def test_sizes() -> None:
    small = _build("resnet_small", (3, 32, 32))
    assert small.dim == 128
    assert 0.48e6 < parameter_count(small) < 0.51e6
    assert _build("conv4", (1, 28, 28)).dim == 64
    assert _build("conv4", (3, 84, 84)).dim == 1600
    assert _build("conv4_pyramid", (1, 32, 32)).dim == 1024
    vit = _build("vit_tiny", (3, 32, 32))
    assert vit.dim == 128
    assert 0.75e6 < parameter_count(vit) < 0.85e6


@pytest.mark.parametrize("name", SMALL)
def test_width_scales_the_channels(name: str) -> None:
    one, two = _build(name), _build(name, width=2.0)
    assert two.dim == 2 * one.dim
    assert two(_images(2, 3, 16, 16)).shape == (2, two.dim)
    assert 3 < parameter_count(two) / parameter_count(one) < 4.1
    assert _build(name, width=0.5).dim == one.dim // 2


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (40, 24)])
def test_convolutional_encoders_take_any_size(name: str, size: tuple[int, int]) -> None:
    encoder = _build(name, (1, *size)).eval()
    with torch.no_grad():
        assert encoder(_images(2, 1, *size)).shape == (2, encoder.dim)
        assert encoder(_images(2, 1, 20, 16)).shape == (2, encoder.dim)


@pytest.mark.parametrize("name", SMALL)
def test_images_that_do_not_fit_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="at least 8 x 8 pixels, got 7 x 12"):
        _build(name, (3, 7, 12))
    with pytest.raises(UserError, match=r"takes images \[B, 3, H, W\], got \[2, 1, 16, 16\]"):
        _build(name)(_images(2, 1, 16, 16))


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        _build("resnet-18")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_large_images_get_torchvisions_network(name: str) -> None:
    encoder = _build(name, (3, 72, 72)).eval()
    theirs = torchvision.models.get_model(name, weights=None).eval()
    theirs.load_state_dict({**theirs.state_dict(), **{k: v for k, v in encoder.state_dict().items() if "normalise" not in k}})
    theirs.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 72, 72)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs(encoder.normalise(x)), rtol=1e-4, atol=1e-4)


def _offer_torchvision_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **_: dict(state))
    return state


@pytest.mark.parametrize("shape", [(3, 96, 96), (3, 32, 32), (1, 32, 32), (4, 32, 32), (1, 80, 80)])
def test_torchvision_weights_fit_every_stem(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    state = _offer_torchvision_weights(monkeypatch)
    encoder = _build("resnet18", shape, "torchvision")
    assert torch.equal(encoder.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])
    kernel = state["conv1.weight"][:, :, 2:5, 2:5] if shape[1] <= 64 else state["conv1.weight"]
    if shape[0] == 3:
        assert torch.equal(encoder.conv1.weight, kernel)
    else:  # A grey image shown in every channel gives what it gives in colour.
        torch.testing.assert_close(encoder.conv1.weight.sum(1), kernel.sum(1))
    assert encoder.normalise.mean.flatten().tolist() == pytest.approx((0.5, 0.4, 0.3, 0.2)[: shape[0]])


def test_torchvision_weights_that_cannot_be_had_are_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, **_: object) -> None:
        raise urllib.error.URLError("Name or service\nnot known")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match=r"download, which failed .*not known.*use init none") as error:
        _build("resnet18", init="torchvision")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="init torchvision is for resnet18, resnet34, resnet50, got encoder conv4"):
        _build("conv4", init="torchvision")
    with pytest.raises(UserError, match="width 1 only, got width 2"):
        _build("resnet18", init="torchvision", width=2)


@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    encoder, images = _build(name, width=0.5), _images(8, 3, 16, 16)
    encoder(images)  # Moves the running statistics.
    path = tmp_path / "best" / "encoder.pt"
    save_encoder(path, encoder)
    torch.manual_seed(99)
    loaded = load_encoder(path)
    assert not loaded.training
    assert torch.equal(loaded(images), encoder.eval()(images))
    assert (loaded.name, loaded.shape, loaded.layers) == (name, (3, 16, 16), encoder.layers)
    assert [p.name for p in path.parent.iterdir()] == ["encoder.pt"]


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_a_loaded_encoder_looks_at_images_at_its_own_size(name: str, tmp_path: Path) -> None:
    """Their centre, where they are longer; in training it takes what it gets."""
    encoder = _build(name).eval()
    save_encoder(tmp_path / "e.pt", encoder)
    loaded = load_encoder(tmp_path / "e.pt")
    x, y = torch.meshgrid(torch.linspace(0, 3, 96), torch.linspace(0, 3, 96), indexing="ij")
    phase = torch.rand(3, 3, 1, 1) * 6
    large = 0.5 + 0.4 * torch.sin(x + phase) * torch.cos(y - phase)  # smooth: alike at every scale
    small = torch.nn.functional.avg_pool2d(large, 6)
    z, apart = encoder(small), float((encoder(small[:1]) - encoder(small[1:2])).abs().max())
    assert float((loaded(large) - z).abs().max()) < 0.1 * apart
    wide = torch.cat([torch.rand(3, 3, 96, 20), large, torch.rand(3, 3, 96, 20)], dim=3)
    torch.testing.assert_close(loaded(wide), loaded(large), rtol=1e-4, atol=1e-5)
    assert float((loaded((255 * large).round().to(torch.uint8)) - loaded(large)).abs().max()) < 0.1 * apart
    assert torch.equal(loaded(small), z)
    torch.testing.assert_close(loaded((255 * large).round().long()), loaded((255 * large).round().to(torch.uint8)))
    loaded.train()
    encoder.train()
    assert torch.equal(loaded(large), encoder(large))


def test_grown_architectures_come_back_too(tmp_path: Path) -> None:
    grown = Conv4((3, 16, 16), (0.5,) * 3, (0.2,) * 3, widths=[8, 24, 24, 16, 16], pools=[1, 1, 0, 1, 0])
    grown.name = "conv4"
    save_encoder(tmp_path / "e.pt", grown)
    images = _images(2, 3, 16, 16)
    assert torch.equal(load_encoder(tmp_path / "e.pt")(images), grown.eval()(images))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["file", "folder", "state_dict"])
def test_starting_weights_from_a_file_a_run_folder_and_a_state_dict(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = _build(name)
    path = tmp_path / "best" / "encoder.pt"
    if kind == "state_dict":
        path = tmp_path / "plain.pt"
        torch.save(source.state_dict(), path)
    else:
        save_encoder(path, source)
    torch.manual_seed(2)
    spec = EncoderSpec(name, str(tmp_path if kind == "folder" else path))
    encoder = build_encoder(spec, (3, 16, 16), (0.1, 0.2, 0.3), (0.3, 0.3, 0.3))
    assert encoder.training
    for (key, value), expected in zip(encoder.state_dict().items(), source.state_dict().values(), strict=True):
        if not key.startswith("normalise."):
            assert torch.equal(value, expected), key
    assert encoder.get_buffer("normalise.mean").flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_checkpoint_of_torchvisions_own_fits_without_its_classifier(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "r.pt")
    encoder = _build("resnet18", (3, 80, 80), str(tmp_path / "r.pt"))
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = _build("conv4").state_dict()
    wrong = copy.copy(state)
    del wrong["blocks.0.0.weight"]
    wrong["surplus"] = torch.zeros(1)
    wrong["blocks.1.1.bias"] = torch.zeros(3)
    torch.save(wrong, tmp_path / "w.pt")
    with pytest.raises(UserError) as error:
        _build("conv4", init=str(tmp_path / "w.pt"))
    message = str(error.value)
    for part in ("missing blocks.0.0.weight", "unknown surplus", "blocks.1.1.bias [3] instead of [64]"):
        assert part in message
    assert "\n" not in message


def test_files_that_are_not_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must exist"):
        _build("conv4", init=str(tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match=r"best/encoder.pt"):
        _build("conv4", init=str(tmp_path))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text.pt is not a file of weights"):
        _build("conv4", init=str(tmp_path / "text.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="a dictionary, got list"):
        load_encoder(tmp_path / "list.pt")
    torch.save(_build("conv4").state_dict(), tmp_path / "state.pt")
    with pytest.raises(UserError, match="not an exported encoder: it lacks encoder, shape"):
        load_encoder(tmp_path / "state.pt")
    save_encoder(tmp_path / "e.pt", _build("conv4"))
    with pytest.raises(UserError, match="holds weights of encoder conv4, got encoder resnet_small"):
        _build("resnet_small", init=str(tmp_path / "e.pt"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state": Path("x"), "call": print}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="not a file of weights"):
        load_encoder(tmp_path / "code.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _build("conv4")
    save_encoder(tmp_path / "e.pt", encoder)
    before = (tmp_path / "e.pt").read_bytes()

    def fails(record: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(tmp_path / "e.pt", encoder)
    assert (tmp_path / "e.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.pt"]


def test_only_named_encoders_are_saved(tmp_path: Path) -> None:
    nameless = Conv4((3, 16, 16), (0.5,) * 3, (0.2,) * 3, widths=[8])
    with pytest.raises(UserError, match="built by name"):
        save_encoder(tmp_path / "e.pt", nameless)
    with pytest.raises(UserError, match="built by name"):
        save_predictor(tmp_path / "p.pt", Classifier(nameless, 2))


def test_the_seed_fixes_the_weights() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        encoder: ResNet = _build("resnet_small")
        return encoder.conv1.weight

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))
