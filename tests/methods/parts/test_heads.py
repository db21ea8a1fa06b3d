"""Heads: shapes, formulas, and predictors that survive their file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from methods.parts.encoders import EncoderSpec, build_encoder, save_encoder
from methods.parts.heads import Classifier, CosineHead, DinoHead, load_predictor, mlp, projection_head, save_predictor
from search_spaces.domains import UserError


def _encoder() -> nn.Module:
    return build_encoder(EncoderSpec("conv4"), (1, 8, 8), (0.4,), (0.2,))


@pytest.mark.parametrize(("depth", "linears"), [(0, 0), (1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("norm", [True, False])
def test_projection_heads_have_the_depth_they_say(depth: int, linears: int, norm: bool) -> None:
    head = projection_head(6, 8, 4, depth, norm)
    assert sum(isinstance(layer, nn.Linear) for layer in head) == linears
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in head) == (max(depth - 1, 0) if norm else 0)
    assert sum(isinstance(layer, nn.ReLU) for layer in head) == max(depth - 1, 0)
    assert head(torch.randn(3, 6)).shape == (3, 4 if depth else 6)


def test_depth_0_is_the_identity() -> None:
    x = torch.randn(3, 6)
    assert torch.equal(mlp(6, 8, 4, 0)(x), x)


def test_last_norm_standardises_the_output() -> None:
    z = mlp(6, 8, 4, 2, norm=True, last_norm=True)(torch.randn(64, 6))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_cosine_head_is_the_cosine_over_the_temperature() -> None:
    head = CosineHead(3, 2, temperature=0.2)
    x = torch.randn(4, 3)
    logits = head(x)
    for i, row in enumerate(x.tolist()):
        for k, w in enumerate(head.weight.tolist()):
            cosine = sum(a * b for a, b in zip(row, w, strict=True)) / math.hypot(*row) / math.hypot(*w)
            assert logits[i, k].item() == pytest.approx(cosine / 0.2, abs=1e-5)
    torch.testing.assert_close(head(5 * x), logits)


def test_dino_outputs_are_cosines() -> None:
    out = DinoHead(6, 8, 4, 10)(100 * torch.randn(5, 6))
    assert out.shape == (5, 10)
    assert out.abs().max() <= 1 + 1e-6


def test_a_classifier_takes_a_head_or_a_number_of_classes() -> None:
    encoder = _encoder()
    assert Classifier(encoder, 5)(torch.rand(2, 1, 8, 8)).shape == (2, 5)  # type: ignore[arg-type]
    assert Classifier(encoder, nn.Identity())(torch.rand(2, 1, 8, 8)).shape == (2, 64)  # type: ignore[arg-type]


HEADS = {
    "linear": lambda d: nn.Linear(d, 3),
    "cosine": lambda d: CosineHead(d, 3, 0.07),
    "mlp": lambda d: nn.Sequential(mlp(d, 8, 8, 2, norm=True), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3, bias=False)),
    "identity": lambda d: nn.Identity(),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_predictor_comes_back_from_its_file(kind: str, tmp_path: Path) -> None:
    encoder = _encoder()
    predictor = Classifier(encoder, HEADS[kind](encoder.dim), ("cat", "dog", "eel"))  # type: ignore[arg-type]
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    predictor(images)  # Moves the running statistics.
    save_predictor(tmp_path / "new" / "predictor.pt", predictor)
    torch.manual_seed(99)
    loaded = load_predictor(tmp_path / "new" / "predictor.pt")
    assert not loaded.training
    assert loaded.classes == ("cat", "dog", "eel")
    assert torch.equal(loaded(images), predictor.eval()(images))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["predictor.pt"]


def test_predictors_that_cannot_be_saved_say_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoder and head, got Linear"):
        save_predictor(tmp_path / "p.pt", nn.Linear(2, 2))
    with pytest.raises(UserError, match="got GELU"):
        save_predictor(tmp_path / "p.pt", Classifier(_encoder(), nn.GELU()))  # type: ignore[arg-type]
    save_encoder(tmp_path / "e.pt", _encoder())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not an exported predictor"):
        load_predictor(tmp_path / "e.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["e.pt"]
