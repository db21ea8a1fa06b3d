"""Patches, grids and permutation sets."""

from __future__ import annotations

import pytest
import torch

from methods.batch import RandomStream
from methods.contracts import TrainingError
from methods.parts.averaged import averaged
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.framed import FramedEncoder
from methods.parts.modes import statistics_moved
from methods.parts.patches import (
    cut,
    embedded_patches,
    far_permutations,
    jittered_grid,
    mosaic,
    overlapping_grid,
    patch_side,
    shuffled,
    standardised,
)


def draws(n: int) -> RandomStream:
    return RandomStream(1, n, slice(0, n), torch.device("cpu"))


def coordinates(n: int, side: int) -> torch.Tensor:
    """Images whose two channels are each pixel's row and column."""
    row = torch.arange(side).float()
    return torch.stack([row[:, None].expand(side, side), row[None].expand(side, side)]).expand(n, 2, side, side)


def test_cut_takes_the_pixels_it_is_told_to() -> None:
    images = torch.rand(2, 3, 9, 7)
    top, left = torch.tensor([[0, 5], [2, 3]]), torch.tensor([[1, 3], [0, 2]])
    patches = cut(images, top, left, 4)
    for b in range(2):
        for p in range(2):
            t, f = int(top[b, p]), int(left[b, p])
            assert torch.equal(patches[b, p], images[b, :, t : t + 4, f : f + 4])


def test_jittered_patches_stay_in_their_cells_and_move() -> None:
    patches = jittered_grid(coordinates(64, 15), 3, 4, draws(64))  # cells of 5 pixels
    corner = patches[:, :, :, 0, 0]  # B 9 2
    for place in range(9):
        row, column = corner[:, place, 0], corner[:, place, 1]
        assert set(row.tolist()) == {place // 3 * 5.0, place // 3 * 5.0 + 1}
        assert set(column.tolist()) == {place % 3 * 5.0, place % 3 * 5.0 + 1}


def test_full_cells_make_the_image_again() -> None:
    images = torch.rand(3, 3, 12, 12)
    assert torch.equal(mosaic(jittered_grid(images, 3, 4, draws(3))), images)


def test_overlapping_grid_covers_the_image_row_by_row() -> None:
    patches, (rows, columns) = overlapping_grid(coordinates(1, 16), 8, 4)
    assert (rows, columns) == (3, 3)
    assert patches[0, :, :, 0, 0].tolist() == [[r * 4.0, c * 4.0] for r in range(3) for c in range(3)]


def test_shuffled_puts_the_asked_patch_in_its_place() -> None:
    patches = torch.arange(6.0).view(2, 3)
    order = torch.tensor([[2, 0, 1], [0, 2, 1]])
    assert shuffled(patches, order).tolist() == [[2.0, 0.0, 1.0], [3.0, 5.0, 4.0]]


def test_standardised_patches_do_not_tell_brightness_or_contrast() -> None:
    patches = torch.rand(2, 4, 3, 6, 6)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.2, 0.3])
    one = standardised(patches, mean, std)
    torch.testing.assert_close(one, standardised(patches * 0.5 + 0.3, mean, std), rtol=0.1, atol=0.05)
    torch.testing.assert_close(one.mean((3, 4)), mean.expand(2, 4, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("items", "count"), [(4, 24), (9, 64)])
def test_far_permutations_are_permutations_far_apart(items: int, count: int) -> None:
    chosen = far_permutations(items, count)
    assert chosen.shape == (count, items)
    assert all(sorted(row) == list(range(items)) for row in chosen.tolist())
    assert len({tuple(row) for row in chosen.tolist()}) == count
    distance = (chosen[:, None] != chosen[None]).float().sum(2)
    off = distance[~torch.eye(count, dtype=torch.bool)]
    random = items - 1  # The mean Hamming distance of two random permutations.
    assert off.mean() > random - (0.2 if count == 24 else 0)
    if items == 9:
        assert off.min() >= 4


def test_far_permutations_refuses_more_than_there_are() -> None:
    with pytest.raises(TrainingError, match="4 patches have only 24 permutations, got 25"):
        far_permutations(4, 25)


def test_patch_side_fits_transformers_and_refuses_tiny_patches() -> None:
    shape, stats = (3, 32, 32), ((0.5,) * 3, (0.25,) * 3)
    vit = build_encoder(EncoderSpec("vit_tiny"), shape, *stats)
    resnet = build_encoder(EncoderSpec("resnet_small"), shape, *stats)
    assert patch_side(shape, vit, 11.0, "x") == patch_side(shape, FramedEncoder(averaged(vit, 2), 1.0), 11.0, "x") == 8
    assert patch_side(shape, resnet, 10.6, "x") == 11
    with pytest.raises(TrainingError, match="jigsaw: patches must be at least 4 pixels wide, got 3"):
        patch_side((3, 12, 12), resnet, 3.2, "jigsaw")


def test_statistics_of_a_patch_encoder_are_those_of_whole_images() -> None:
    torch.manual_seed(0)
    encoder, twin = (build_encoder(EncoderSpec("resnet_small"), (3, 16, 16), (0.5,) * 3, (0.2,) * 3) for _ in range(2))
    twin.load_state_dict(encoder.state_dict())
    images, patches = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.rand(32, 3, 5, 5)
    z = embedded_patches(encoder, patches, images, 0)
    with torch.no_grad(), statistics_moved(twin, 1.0):  # the first pass counts wholly: nothing of the layers' start is left
        twin(images)
    for (name, mine), other in zip(encoder.named_buffers(), twin.buffers(), strict=True):
        if "running" in name:
            assert torch.equal(mine, other), name
    assert z.requires_grad
    torch.testing.assert_close(z, twin(patches))
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    embedded_patches(encoder, patches, images, 1)
    assert all(torch.equal(b, before[n]) for n, b in encoder.named_buffers() if "running" in n)
