"""Augmentation against PIL and torchvision, image by image, and its contract with strength and workers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from methods.batch import RandomStream
from methods.parts import augment as A
from methods.parts import randaugment as R
from methods.parts import strokes as S
from search_spaces.domains import UserError

LEVEL = 1 / 255
ACTIVE = [recipe for recipe in A.RECIPES if recipe != "identity"]


def photographs(n: int = 16, height: int = 32, width: int = 32) -> Tensor:
    """uint8 [n, 3, height, width], channels_last: pieces of two photographs."""
    pieces = []
    for i in range(n):
        whole = load_photographs()[i % 2]
        top, left = (37 * i) % 200, (53 * i) % 400
        piece = Image.fromarray(whole[top : top + 220, left : left + 220]).resize((width, height), Image.Resampling.BILINEAR)
        pieces.append(np.asarray(piece))
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2)


_PHOTOGRAPHS: list[np.ndarray] = []


def load_photographs() -> list[np.ndarray]:
    if not _PHOTOGRAPHS:
        _PHOTOGRAPHS.extend(load_sample_images().images)
    return _PHOTOGRAPHS


def draws(n: int, seed: int = 0, rows: slice | None = None) -> RandomStream:
    return RandomStream(seed, n, rows or slice(0, n), torch.device("cpu"))


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# Contract.


@pytest.mark.parametrize("recipe", A.RECIPES)
@pytest.mark.parametrize("mask_ratio", [None, 0.5])
def test_strength_zero_is_exactly_the_images(recipe: str, mask_ratio: float | None) -> None:
    images = photographs()
    result = A.augmentation(recipe, strength=0.0, mask_ratio=mask_ratio)(images, draws(16))
    assert torch.equal(result, images.float() / 255)


@pytest.mark.parametrize("recipe", ACTIVE)
@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 40), (4, 9, 7), (1, 1, 5)])
def test_views_are_finite_float32_in_range(recipe: str, strength: float, shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (32, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:4] = 0  # flat images: no contrast to stretch, nothing to equalise
    images[4:8] = 255
    view = A.augmentation(recipe, strength)(images, draws(32))
    assert view.shape == images.shape
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(view).all()
    assert view.min() >= 0
    assert view.max() <= 1


@pytest.mark.parametrize("recipe", ACTIVE)
@pytest.mark.parametrize("cuts", [(0, 32, 64), (0, 7, 40, 64)])
def test_workers_together_see_what_one_worker_sees(recipe: str, cuts: tuple[int, ...]) -> None:
    images = photographs(64)
    augment = A.augmentation(recipe, mask_ratio=0.2 if recipe == "weak" else None)
    whole = augment(images, draws(64))
    parts = [augment(images[a:b], draws(64, rows=slice(a, b))) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("recipe", ACTIVE)
def test_same_draws_same_view_and_successive_calls_differ(recipe: str) -> None:
    images, augment = photographs(), A.augmentation(recipe)
    stream = draws(16, seed=3)
    first, second = augment(images, stream), augment(images, stream)
    assert torch.equal(first, augment(images, draws(16, seed=3)))
    assert (first != second).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("recipe", ACTIVE)
def test_block_size_changes_nothing(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, augment = photographs(), A.augmentation(recipe)
    expected = augment(images, draws(16))
    monkeypatch.setattr(A, "BLOCK", 5000)
    assert torch.equal(augment(images, draws(16)), expected)


@pytest.mark.parametrize("recipe", ACTIVE)
def test_distance_from_the_images_grows_with_strength(recipe: str) -> None:
    images = photographs(256)
    clean = A.to_float(images)
    augments = [A.augmentation(recipe, s, flip=False) for s in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)]
    distances = [(a(images, draws(256)) - clean).abs().mean().item() for a in augments]
    grows = distances if recipe != "crop_flip" else distances[:4]  # beyond 1 the crop meets its smallest area
    assert grows == sorted(grows)
    assert distances[0] == 0
    assert distances[1] > 0


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    for recipe in A.RECIPES:
        A.augmentation(recipe)(photographs(4), draws(4))
    assert torch.equal(before, torch.get_rng_state())


def test_autocast_does_not_coarsen_views() -> None:
    images, augment = photographs(), A.augmentation("simclr")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, draws(16))
    assert torch.equal(inside, augment(images, draws(16)))


def test_pickles_and_compares() -> None:
    augment = A.augmentation("strong", 0.7, flip=False, mask_ratio=0.3, size=16)
    assert pickle.loads(pickle.dumps(augment)) == augment  # noqa: S301 (our own bytes)


@pytest.mark.parametrize("recipe", ACTIVE)
def test_float_images_give_the_views_of_uint8_images(recipe: str) -> None:
    images, augment = photographs(), A.augmentation(recipe)
    torch.testing.assert_close(augment(A.to_float(images), draws(16)), augment(images, draws(16)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", A.RECIPES)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_size_of_views(recipe: str, strength: float) -> None:
    assert A.augmentation(recipe, strength, size=(20, 12))(photographs(), draws(16)).shape == (16, 3, 20, 12)


def test_local_crops_show_less_than_global_ones() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).expand(500, 1, 64, 64)  # brightness tells the column

    def seen(scale: tuple[float, float]) -> float:
        view = A.augmentation("crop_flip", size=16, scale=scale)(ramp, draws(500))
        return (view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3))).mean().item()

    assert seen((0.05, 0.4)) < 0.7 * seen((0.4, 1.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"recipe": "simclr2"}, "simclr2"),
        ({"recipe": "weak", "strength": 2.5}, "2.5"),
        ({"recipe": "weak", "strength": math.nan}, "nan"),
        ({"recipe": "strong", "mask_ratio": 1.5}, "1.5"),
        ({"recipe": "weak", "scale": (0.2, 1.0)}, "weak"),
        ({"recipe": "simclr", "scale": (0.5, 0.2)}, "0.5"),
        ({"recipe": "simclr", "size": 0}, "0"),
    ],
)
def test_mistakes_are_named(arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        A.augmentation(**arguments)


# Geometry.


@pytest.mark.parametrize("size", [(32, 32), (16, 12), (50, 70)])
def test_crop_is_torchvisions_resized_crop(size: tuple[int, int]) -> None:
    images = photographs(8, 32, 48)
    boxes = torch.tensor([[i, 2 * i, 31 - 2 * i, 30 - i] for i in range(8)])
    mirrored = torch.arange(8) % 2 == 1
    result = A.crop(images, boxes.float(), size, mirrored)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        expected = F.resized_crop(A.to_float(images[i]), top, left, height, width, list(size), antialias=True)
        expected = expected.flip(2) if mirrored[i] else expected
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)  # float32 weights


def test_crop_boxes_have_torchvisions_distribution() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    n, scale, ratio = 4000, (0.2, 1.0), (3 / 4, 4 / 3)
    ours = A.draw_boxes(draws(n), 40, 30, scale, ratio).double()
    torch.manual_seed(0)
    reference = RandomResizedCrop(8, scale=scale, ratio=ratio)
    blank = torch.zeros(1, 40, 30)
    drawn = [reference.make_params([blank]) for _ in range(n)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn], dtype=torch.float64)
    spread = (ours.var(dim=0) / n + theirs.var(dim=0) / n).sqrt()
    # five standard errors of the difference, and a tenth of a pixel for torchvision's rounding
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * spread + 0.1).all()
    assert (ours.std(dim=0) / theirs.std(dim=0) - 1).abs().max() < 0.08
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 40 + 1e-4).all()
    assert (ours[:, 1] + ours[:, 3] <= 30 + 1e-4).all()


def test_crop_falls_back_to_a_central_box() -> None:
    box = A.draw_boxes(draws(50), 10, 100, (0.99, 1.0), (3 / 4, 4 / 3))  # no such box fits into a strip
    torch.testing.assert_close(box, torch.tensor([0.0, 50 - 20 / 3, 10.0, 40 / 3]).expand(50, 4))


def test_whole_image_crop_is_exact() -> None:
    images = photographs(4, 24, 40)
    assert torch.equal(A.resize(images, (24, 40)), A.to_float(images))
    square = photographs(4)
    assert torch.equal(A.random_resized_crop(square, draws(4), (1.0, 1.0), (1.0, 1.0)), A.to_float(square))


def test_resize_is_torchvisions() -> None:
    images = photographs(4, 32, 48)
    expected = F.resize(A.to_float(images), [20, 60], antialias=True)
    torch.testing.assert_close(A.resize(images, (20, 60)), expected, atol=1e-5, rtol=0)


def test_shift_is_reflect_padding_and_a_crop() -> None:
    images = photographs(9, 16, 24)
    steps = torch.tensor([[dy, dx] for dy in (-3, 0, 2) for dx in (-5, 0, 4)])
    mirrored = torch.arange(9) % 2 == 0
    result = A.shift(images, steps, mirrored)
    for i, (dy, dx) in enumerate(steps.tolist()):
        wide = np.pad(images[i].numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")[:, 5 - dy : 21 - dy, 5 - dx : 29 - dx]
        expected = wide[:, :, ::-1].copy() if mirrored[i] else wide
        assert torch.equal(result[i], torch.from_numpy(expected))


def test_translation_reaches_its_share_evenly() -> None:
    steps = A.whole_steps(photographs(1, 32, 16).expand(9000, 3, 32, 16), draws(9000), 0.125)
    for column, reach in ((0, 4), (1, 2)):
        counts = torch.bincount(steps[:, column] + reach).double()
        assert len(counts) == 2 * reach + 1
        p = 1 / len(counts)
        assert ((counts - 9000 * p).abs() < 5 * math.sqrt(9000 * p * (1 - p))).all()  # five SDs of a binomial


def test_mirror_flips_half_of_the_images() -> None:
    images = photographs(1).expand(2000, 3, 32, 32)
    result = A.mirror(images, draws(2000))
    flipped = (result == images.flip(3)).flatten(1).all(dim=1)
    assert (flipped | (result == images).flatten(1).all(dim=1)).all()
    assert abs(flipped.sum().item() - 1000) < 5 * math.sqrt(500)


@pytest.mark.parametrize("recipe", ["weak", "simclr", "strong", "crop_flip", "strokes"])
def test_no_mirror_images_without_flip(recipe: str) -> None:
    ramp = (4 * torch.arange(64, dtype=torch.uint8)).expand(64, 3, 64, 64)  # darker on the left

    def rises(flip: bool) -> Tensor:
        view = A.augmentation(recipe, 0.3, flip=flip)(ramp, draws(64)).mean(dim=(1, 2))
        return view[:, 40:60].mean(dim=1) >= view[:, 4:24].mean(dim=1)

    assert (~rises(True)).sum() > 10
    upright = ~rises(False)
    assert upright.sum() <= (16 if recipe == "strong" else 0)  # solarize also turns a ramp around


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_quarter_turns_are_exact(dtype: torch.dtype) -> None:
    images = photographs(8).to(dtype)
    k = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    result = A.rotate_quarter(images, k)
    for i in range(8):
        assert torch.equal(result[i], torch.rot90(images[i], int(k[i]), (1, 2)))
    with pytest.raises(UserError, match="24 x 40"):
        A.rotate_quarter(photographs(2, 24, 40), k[:2])


def test_quarter_turns_pass_gradients() -> None:
    x = torch.rand(4, 1, 3, 3, requires_grad=True)
    A.rotate_quarter(x, torch.arange(4)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_cutout_hides_its_share_of_the_area(share: float) -> None:
    images = torch.zeros(300, 3, 64, 40, dtype=torch.uint8)
    hidden = A.cutout(images, draws(300), share) == 0.5
    side = math.sqrt(share)
    assert torch.equal(hidden.flatten(1).sum(dim=1), torch.full((300,), 3 * round(side * 64) * round(side * 40)))
    if 0 < share < 1:  # every pixel is reached, or cutout would teach a network where to look
        assert hidden[:, 0].any(dim=0).float().mean() > 0.9


def test_strong_hides_mask_ratio_times_strength() -> None:
    images = torch.zeros(200, 1, 40, 40, dtype=torch.uint8)
    for strength in (0.25, 0.5, 1.0, 2.0):
        view = A.augmentation("weak", strength, mask_ratio=0.4)(images, draws(200))
        hidden = (view == 0.5).float().mean().item()
        assert abs(hidden - 0.4 * strength) < 0.03  # whole pixels: a box side is off by half a pixel of 40 at most


# Colour.


def jitter_of(rows: list[tuple[float, float, float, float]], order: list[list[int]]) -> A.Jitter:
    b, c, s, h = torch.tensor(rows).unbind(dim=1)
    return b, c, s, h, torch.tensor(order)


TORCHVISION: dict[int, Callable[[Tensor, float], Tensor]] = {
    0: F.adjust_brightness,
    1: F.adjust_contrast,
    2: F.adjust_saturation,
}


def test_brightness_contrast_and_saturation_are_torchvisions_in_any_order() -> None:
    images = photographs(6) // 2 + 64  # mid greys: nothing is clipped on the way, which we do once, at the end
    orders = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 1, 0, 3], [3, 2, 1, 0], [1, 2, 3, 0], [0, 3, 2, 1]]
    rows = [
        (0.9, 1.2, 0.5, 0.0),
        (1.1, 0.4, 1.3, 0.0),
        (0.8, 0.7, 0.0, 0.0),
        (1.2, 0.9, 1.2, 0.0),
        (0.6, 1.2, 0.9, 0.0),
        (1, 1, 1, 0.0),
    ]
    result = A.recoloured(images, jitter_of(rows, orders))
    for i, order in enumerate(orders):
        expected = A.to_float(images[i])
        for op in order:
            if op in TORCHVISION:
                expected = TORCHVISION[op](expected, rows[i][op])
        # torchvision's grey weights .2989/.587/.114 sum to .9999; 2e-3 is half a grey level
        torch.testing.assert_close(result[i], expected, atol=2e-3, rtol=0)


def test_hue_is_hsvs_at_thirds_of_a_turn_and_near_it_between() -> None:
    x = A.to_float(photographs(8) // 2 + 64)

    def turned(turn: float) -> Tensor:
        return A.recoloured(x, jitter_of([(1, 1, 1, turn)] * 8, [[0, 1, 2, 3]] * 8))

    for turn in (-1 / 3, 1 / 3):
        torch.testing.assert_close(turned(turn), F.adjust_hue(x, turn), atol=1e-5, rtol=0)
    for turn in (-0.2, 0.2):
        expected = F.adjust_hue(x, turn)
        error = (turned(turn) - expected).abs().mean()
        assert error < 0.5 * (x - expected).abs().mean()  # most of the change is the same, see the module's deviations
        assert error < 0.5 * (turned(-turn) - expected).abs().mean()  # and it goes the right way round


def test_contrast_uses_the_mean_of_the_image_so_far() -> None:
    """A plain float64 chain over each pixel, hue and the blend of grey included."""
    images = photographs(4) // 2 + 64
    jitter = A.draw_jitter(draws(4, 5), 0.3, 0.3, 0.8, 0.1, 1.0)
    grey = torch.tensor([0.0, 0.4, 1.0, 0.2])
    result = A.recoloured(images, jitter, grey)
    weights = np.array(A.GREY)
    hues = A.hue_matrix(jitter[3]).double().numpy()
    for i in range(4):
        x = images[i].double().numpy() / 255
        for op in jitter[4][i].tolist():
            luminance = np.tensordot(weights, x, 1)
            if op == 0:
                x = x * jitter[0][i].item()
            elif op == 1:
                c = jitter[1][i].item()
                x = c * x + (1 - c) * luminance.mean()
            elif op == 2:
                s = jitter[2][i].item()
                x = s * x + (1 - s) * luminance
            else:
                x = np.tensordot(hues[i], x, 1)
        x = (1 - grey[i].item()) * x + grey[i].item() * np.tensordot(weights, x, 1)
        np.testing.assert_allclose(result[i].numpy(), x.clip(0, 1), atol=1e-5)


def test_jitter_frequency_ranges_and_orders() -> None:
    n = 5000
    brightness, contrast, saturation, hue, order = A.draw_jitter(draws(n), 0.8, 0.8, 0.8, 0.2, 0.8)
    chosen = hue != 0
    assert abs(chosen.sum().item() - 0.8 * n) < 5 * math.sqrt(n * 0.8 * 0.2)
    for factor in (brightness, contrast, saturation):
        assert (factor[~chosen] == 1).all()
        assert 0.2 <= factor.min() < 0.22
        assert 1.78 < factor.max() <= 1.8
    assert hue.abs().max() <= 0.2
    first = torch.bincount(order[:, 0], minlength=4).double()
    assert ((first - n / 4).abs() < 5 * math.sqrt(n * 0.25 * 0.75)).all()
    doubled = A.draw_jitter(draws(n), 1.6, 1.6, 1.6, 0.4, 0.8)
    assert doubled[0].min() >= 0


def test_grayscale_frequency_and_value() -> None:
    images = photographs(1).expand(2000, 3, 32, 32)
    result = A.grayscale(images, draws(2000))
    grey = (result[:, 0] == result[:, 2]).flatten(1).all(dim=1)
    assert abs(grey.sum().item() - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8)
    expected = F.rgb_to_grayscale(A.to_float(images[:1]), num_output_channels=3)
    torch.testing.assert_close(result[grey][:1], expected, atol=1e-3, rtol=0)  # torchvision's weights sum to .9999


def test_colour_operations_leave_one_channel_grey_values_alone() -> None:
    images = photographs()[:, :1]
    only_colour = jitter_of([(1, 1, 0.1, 0.2)] * 16, [[0, 1, 2, 3]] * 16)
    torch.testing.assert_close(A.recoloured(images, only_colour), A.to_float(images), atol=1e-6, rtol=0)
    assert torch.equal(A.grayscale(images, draws(16), p=1.0), A.to_float(images))
    darker = A.recoloured(images, jitter_of([(0.5, 1, 1, 0)] * 16, [[0, 1, 2, 3]] * 16))
    torch.testing.assert_close(darker, A.to_float(images) / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("side", "kernel"), [(24, 3), (56, 5), (96, 9)])
def test_blur_is_torchvisions(side: int, kernel: int) -> None:
    images = photographs(4, side, side)
    sigma = torch.tensor([0.0, 0.3, 1.0, 2.0])
    result = A.blurred(images, sigma)
    assert torch.equal(result[0], A.to_float(images[0]))
    for i in (1, 2, 3):
        expected = F.gaussian_blur(A.to_float(images[i]), [kernel, kernel], [sigma[i].item()] * 2)
        torch.testing.assert_close(result[i], expected, atol=1e-5, rtol=0)


def test_blur_frequency_and_range() -> None:
    sigma = A.draw_sigma(draws(2000), (0.1, 2.0), 0.5)
    used = sigma[sigma > 0]
    assert abs(len(used) - 1000) < 5 * math.sqrt(500)
    assert used.min() >= 0.1
    assert used.max() < 2.0


def test_noise_has_its_spread() -> None:
    grey = torch.full((50, 3, 32, 32), 0.5)
    noise = A.gaussian_noise(grey, draws(50), 0.05) - 0.5
    n = noise.numel()
    assert abs(noise.mean().item()) < 5 * 0.05 / math.sqrt(n)
    assert abs(noise.std().item() / 0.05 - 1) < 5 / math.sqrt(2 * n)


def test_simclr_view_is_crop_then_blur_then_colour() -> None:
    """The fused product against its parts one after the other, with the same drawn numbers."""
    images, stream = photographs(32), draws(32, 7)
    view = A.augmentation("simclr")(images, draws(32, 7))
    box = A.draw_boxes(stream, 32, 32, (0.2, 1.0))
    mirrored = stream.chance(0.5)
    sigma = A.draw_sigma(stream, (0.1, 2.0), 0.5)
    jitter = A.draw_jitter(stream, 0.8, 0.8, 0.8, 0.2, 0.8)
    grey = stream.chance(0.2).float()
    parts = A.recoloured(A.blurred(A.crop(images, box, (32, 32), mirrored), sigma), jitter, grey)
    torch.testing.assert_close(view, parts, atol=1e-5, rtol=0)


def test_lab_of_known_colours() -> None:
    colours = torch.tensor(
        [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]], dtype=torch.uint8
    )
    lab = A.rgb_to_lab(colours[:, :, None, None])[:, :, 0, 0]
    # published CIE Lab values (D65, 2 degrees) of the sRGB primaries, to two decimals
    expected = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [50.03, 0, 0]]
    )
    torch.testing.assert_close(lab, expected, atol=0.1, rtol=0)
    with pytest.raises(UserError, match="got 1"):
        A.rgb_to_lab(torch.zeros(1, 1, 2, 2))


# RandAugment, operation by operation, against PIL.


def difference(ours: Tensor, pil: Image.Image) -> int:
    return int((ours.int() - from_pil(pil).int()).abs().max())


@pytest.mark.parametrize("factor", [0.0, 0.05, 0.37, 0.95, 1.0])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("saturation", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pils(name: str, reference: Callable, factor: float) -> None:
    images = photographs(6, 32, 40)
    result = getattr(R, name)(images, torch.full((6,), factor))
    for i in range(6):  # one grey level: float32 before truncation, and PIL's own rounding of the smooth image
        assert difference(result[i], reference(to_pil(images[i])).enhance(factor)) <= 1


def test_table_operations_are_pils() -> None:
    images = photographs(6, 32, 40) // 2 + 30
    images[5] = 77
    for i in range(6):
        picture = to_pil(images[i])
        assert difference(R.autocontrast(images)[i], ImageOps.autocontrast(picture)) <= 1  # float32 before truncation
        assert difference(R.equalize(images)[i], ImageOps.equalize(picture)) == 0
        assert difference(R.solarize(images, torch.full((6,), 90.0))[i], ImageOps.solarize(picture, 90)) == 0
        for bits in (4, 6, 8):
            assert difference(R.posterize(images, torch.full((6,), bits))[i], ImageOps.posterize(picture, bits)) == 0


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_are_pils(name: str, sign: float) -> None:
    images, amount = photographs(5, 32, 40), torch.tensor([0.0, 0.21, 0.43, 0.77, 0.99])
    result = R.apply(images, torch.full((5,), R.OPERATIONS.index(name)), amount, torch.full((5,), sign))
    assert torch.equal(result[0], images[0])
    for i in range(1, 5):
        picture, v = to_pil(images[i]), sign * amount[i].item()
        if name == "rotate":
            expected = picture.rotate(30 * v)
        else:
            numbers = {
                "shear_x": (1, 0.3 * v, 0, 0, 1, 0),
                "shear_y": (1, 0, 0, 0.3 * v, 1, 0),
                "translate_x": (1, 0, 0.3 * v * 40, 0, 1, 0),
                "translate_y": (1, 0, 0, 0, 1, 0.3 * v * 32),
            }[name]
            expected = picture.transform(picture.size, Image.Transform.AFFINE, numbers)
        same = (result[i] == from_pil(expected)).all(dim=0).float().mean()
        assert same > 0.98  # the nearest pixel may differ where rounding decides


def test_every_operation_is_drawn_equally_often_and_zero_strength_is_identity() -> None:
    n = 14000
    kinds = draws(n).integers(len(R.OPERATIONS), 2)
    counts = torch.bincount(kinds.flatten()).double()
    assert len(counts) == 14
    p = 1 / 14
    assert ((counts - 2 * n * p).abs() < 5 * math.sqrt(2 * n * p * (1 - p))).all()
    images = photographs(140)
    assert torch.equal(R.rand_augment(images, draws(140), strength=0.0), images)


def test_each_image_gets_its_own_operation() -> None:
    images = photographs(56)
    kind = torch.arange(56) * 5 % 14
    amount, sign = torch.linspace(0.2, 0.9, 56), torch.ones(56)
    together = R.apply(images, kind, amount, sign)
    for i in range(56):
        one = slice(i, i + 1)
        assert torch.equal(together[one], R.apply(images[one], kind[one], amount[one], sign[one]))


@pytest.mark.parametrize("name", R.OPERATIONS)
def test_operations_grow_with_strength(name: str) -> None:
    images = photographs(64) // 2 + 40
    kind = torch.full((64,), R.OPERATIONS.index(name))
    amount, sign = draws(64).uniform(), torch.ones(64)
    distances = [(R.apply(images, kind, amount, sign, s).float() - images).abs().mean().item() for s in (0.0, 0.5, 1.0)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert (distances[2] > distances[1] > 0) == (name != "identity")


# Strokes.


def test_an_affine_map_is_what_its_words_say() -> None:
    """A quarter turn, a shift by whole pixels, and half the size, against exact operations on arrays."""
    image = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    zero, one, none = torch.zeros(1), torch.ones(1), torch.zeros(1, 2)
    quarter = S.warped(image, S.affine(torch.full((1,), math.pi / 2), zero, one, one, none))
    torch.testing.assert_close(quarter, image.rot90(1, dims=(2, 3)), atol=1e-4, rtol=0)
    moved = S.warped(image, S.affine(zero, zero, one, one, torch.tensor([[1 / 9, -2 / 9]])))
    torch.testing.assert_close(moved[..., 2:, :-1], image[..., :-2, 1:], atol=1e-4, rtol=0)
    square = torch.zeros(1, 1, 32, 32)
    square[..., 8:24, 8:24] = 1
    small = S.warped(square, S.affine(zero, zero, 2 * one, 2 * one, none))
    assert small.sum() == pytest.approx(64, abs=2)
    wide = S.warped(square, S.affine(zero, zero, 2 * one, one, none))
    assert ((wide.sum(3) > 1).sum().item(), (wide.sum(2) > 1).sum().item()) == (8, 16)


def test_ink_thickens_and_thins_whether_dark_or_light() -> None:
    line = torch.zeros(2, 1, 9, 9)
    line[..., 4] = 1
    thick, thin = S.inked(line, torch.tensor([0.3, -0.3]))
    assert thick[0, 4].tolist() == pytest.approx([0, 0, 0, 0.3, 1, 0.3, 0, 0, 0])
    assert thin[0, 4].tolist() == pytest.approx([0, 0, 0, 0, 0.7, 0, 0, 0, 0])
    torch.testing.assert_close(S.inked(1 - line, torch.tensor([-0.3, 0.3])), 1 - torch.stack([thick, thin]))


def test_strokes_bend_and_keep_the_characters_legible() -> None:
    """At strength 1 views of one drawing stay nearer to it than another drawing is, and differ from each other."""
    canvas = torch.zeros(2, 1, 28, 28)
    canvas[0, :, 5:23, 13:15] = 1
    canvas[1, :, 13:15, 5:23] = 1
    views = A.augmentation("strokes", flip=False)(canvas[:1].expand(64, -1, -1, -1), draws(64))
    soft = torch.nn.functional.avg_pool2d
    near, far = ((soft(views, 7) - soft(other, 7)).square().flatten(1).sum(1) for other in canvas[:, None])
    assert (near < far).all()
    assert (views[1:] - views[:-1]).abs().flatten(1).max(dim=1).values.min() > 0.1
