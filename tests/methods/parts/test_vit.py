"""The vision transformer's tokens, positions, patches and attention."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from methods.parts.encoders import EncoderSpec, TokenEncoder, build_encoder, load_encoder, save_encoder
from methods.parts.vit import patch_size, patches, positions, unpatch
from search_spaces.domains import UserError


def _vit(shape: tuple[int, int, int] = (3, 16, 16)) -> TokenEncoder:
    encoder = build_encoder(EncoderSpec("vit_tiny"), shape, (0.5,) * shape[0], (0.25,) * shape[0])
    assert isinstance(encoder, TokenEncoder)
    return encoder.eval()


@pytest.mark.parametrize(
    ("size", "patch"),
    [((32, 32), 4), ((28, 28), 4), ((8, 8), 1), ((84, 84), 12), ((96, 96), 12), ((224, 224), 28), ((32, 16), 4), ((30, 20), 5)],
)
def test_the_automatic_patch_gives_about_8_by_8(size: tuple[int, int], patch: int) -> None:
    assert patch_size((3, *size)) == patch
    vit = _vit((3, *size))
    assert vit.patch == patch
    assert vit.grid == (size[0] // patch, size[1] // patch)


@pytest.mark.parametrize("size", [(31, 31), (37, 32), (64, 8)])
def test_sizes_without_a_fitting_patch_are_refused(size: tuple[int, int]) -> None:
    if size == (64, 8):
        assert _vit((3, *size)).grid == (8, 1)
        return
    with pytest.raises(UserError, match=f"got {size[0]} x {size[1]}; resize"):
        _vit((3, *size))


def test_images_that_are_no_multiple_of_the_patch_are_refused() -> None:
    vit = _vit((3, 32, 32))
    with pytest.raises(UserError, match="multiples of the patch, 4 pixels, got 32 x 30"):
        vit(torch.rand(2, 3, 32, 30))


def test_patches_are_squares_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    found = patches(x, 2)
    assert found.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            square = x[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(found[1, 3 * row + column], square.flatten())
    assert torch.equal(unpatch(found, (2, 3), 3), x)
    assert torch.equal(patches(x.contiguous(memory_format=torch.channels_last), 2), found)


def test_positions_are_the_formula() -> None:
    found = positions((2, 3), (2, 3), 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert found[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_other_grids_lie_over_the_reference() -> None:
    small, full = positions((4, 4), (8, 8), 16), positions((8, 8), (8, 8), 16)
    assert not torch.allclose(small[0], full[0])
    halfway = positions((2, 2), (6, 6), 16)  # The centre of a third of 6 is a place of the full grid: 1 and 4.
    reference = positions((6, 6), (6, 6), 16)
    torch.testing.assert_close(halfway, reference[[7, 10, 25, 28]])


def test_smaller_crops_are_encoded_with_the_same_weights() -> None:
    vit = _vit((3, 32, 32))
    assert vit(torch.rand(2, 3, 16, 16)).shape == (2, 128)
    assert vit.embed(torch.rand(2, 3, 16, 20)).shape == (2, 20, 128)


def test_encoding_all_tokens_is_forward() -> None:
    vit, images = _vit(), torch.rand(2, 3, 16, 16)
    encoded = vit.encode(vit.embed(images))
    assert encoded.shape == (2, 65, 128)
    torch.testing.assert_close(encoded[:, 1:].mean(1), vit(images))
    vit.pool = "cls"
    torch.testing.assert_close(encoded[:, 0], vit(images))


def test_hidden_tokens_are_not_seen_and_order_does_not_matter() -> None:
    vit, images = _vit(), torch.rand(2, 3, 16, 16)
    shown = torch.randperm(64)[:10]
    one = vit.encode(vit.embed(images)[:, shown])
    changed = images.clone()
    hidden = next(i for i in range(64) if i not in shown.tolist())
    row, column = divmod(hidden, 8)
    changed[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 0
    torch.testing.assert_close(vit.encode(vit.embed(changed)[:, shown]), one)
    back = vit.encode(vit.embed(images)[:, shown.flip(0)])
    torch.testing.assert_close(back[:, 1:].flip(1), one[:, 1:], rtol=1e-4, atol=1e-5)


def test_attention_is_what_the_last_block_uses() -> None:
    vit, images = _vit(), torch.rand(2, 3, 16, 16)
    found = vit.attention(images)
    assert found.shape == (2, 4, 64)
    assert (found >= 0).all()
    assert (found.sum(-1) < 1).all()
    x = torch.cat([vit.cls.expand(2, -1, -1), vit.embed(images)], dim=1)
    for block in vit.blocks[:-1]:
        x = block(x)
    last = vit.blocks[-1]
    _, _, v = last._qkv(x)
    mixed = (last.attention(x) @ v).transpose(1, 2).flatten(2)
    y = x + last.out(mixed)
    torch.testing.assert_close(y + last.mlp(last.norm2(y)), last(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.attention(x)[:, :, 0, 1:], found)


def test_every_parameter_gets_a_gradient() -> None:
    for pool in ("mean", "cls"):
        vit = _vit()
        vit.pool = pool
        vit(torch.rand(2, 3, 16, 16)).square().sum().backward()
        assert [name for name, p in vit.named_parameters() if p.grad is None] == []


def test_pool_and_patch_are_saved_and_used_as_a_start(tmp_path: Path) -> None:
    vit = _vit((3, 16, 16))
    vit.pool = "cls"
    save_encoder(tmp_path / "e.pt", vit)
    loaded = load_encoder(tmp_path / "e.pt")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), vit(images))
    started = build_encoder(EncoderSpec("vit_tiny", str(tmp_path / "e.pt")), (3, 32, 32), (0.5,) * 3, (0.25,) * 3)
    assert isinstance(started, TokenEncoder)
    assert (started.patch, started.grid, started.pool) == (2, (16, 16), "cls")
