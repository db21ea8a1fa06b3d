"""Batched augmentation on the images' own device: the same code for CPU and GPU, no loop over images.

``augmentation(recipe, strength)`` builds one of

- ``identity``: images / 255.
- ``weak``: translation by up to 1/8 of each side with mirrored borders, flip (FixMatch, https://arxiv.org/abs/2001.07685),
  Gaussian noise of sd .15 in units of a standardised image (https://arxiv.org/abs/1804.09170), taken as .0375 of [0, 1].
- ``simclr`` (https://arxiv.org/abs/2002.05709): random resized crop (area .2-1, aspect 3/4-4/3), flip, colour jitter
  .8/.8/.8/.2 with probability .8, grayscale with .2, Gaussian blur of sigma .1-2 pixels and a kernel of a tenth of the side
  with .5.
- ``strong``: the translation and flip of ``weak``, RandAugment (two operations, see ``randaugment``), then cutout of a grey box
  whose side is uniform in 0-.5 of the image's, as in FixMatch. With ``mask_ratio`` every image loses that share of its area.
- ``crop_flip``: the crop and flip of ``simclr`` (MAE, https://arxiv.org/abs/2111.06377).
- ``strokes``, for drawings and characters: affine maps, elastic bending and thicker or thinner strokes, see ``strokes``; flip.

``strength`` is the knob ``augmentation_strength``: 0 is exactly the identity (no flip either), 1 the paper, at most 2.
Magnitudes grow linearly from identity; application probabilities stay (a flip has no magnitude: it is on as soon as
strength > 0). The crop's smallest area goes from 1 at 0 to the paper's at 1 and is clipped at .08; its largest area and the
translation in ``strong`` stop growing at 1; grayscale is blended in, fully from 1 on; the jitter's hue stops at half a turn, a
cutout at the whole image.

Deviations from the papers and from PIL:
- Crop boxes are real numbers, not whole pixels. Interpolation is bilinear with anti-aliasing (MAE: bicubic).
- Jitter runs in each image's own random order as one colour matrix, so values are clipped once, at the end.
- Hue turns RGB about the grey axis, a circle where HSV has a hexagon: equal at thirds of a turn; at .2 turns the mean
  difference is about a third of the change that HSV makes, at .1 about two thirds.
- Images without 3 channels get brightness and contrast only, and no grayscale.
- The blur stands before the colour operations, with which it commutes up to clipping.
- Boxes of cutout lie wholly inside the image, so that their area is what it says.

Legend: B batch, C channels, H x W input size, h x w output size. Images are uint8 or float in [0, 1]; results are float32 in
[0, 1], channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.batch import RandomStream
from methods.parts.framing import framed
from methods.parts.randaugment import rand_augment
from methods.parts.strokes import redrawn
from search_spaces.domains import UserError

RECIPES = ("identity", "weak", "simclr", "strong", "crop_flip", "strokes")
MAX_STRENGTH = 2.0
SHIFT = 0.125
NOISE = 0.0375
RATIO = (3 / 4, 4 / 3)
CROP = (0.2, 1.0)
SMALLEST_CROP = 0.08
SIGMA = (0.1, 2.0)
GREY = (0.299, 0.587, 0.114)
BLOCK = 2**18  # values per block and thread on the CPU: temporaries then stay in the cache


@dataclass(frozen=True)
class Augment:
    """One recipe at one strength. Call it with images [B, C, H, W] and their draws; successive calls give fresh views.

    Attributes:
        recipe: one of RECIPES.
        strength: 0 to 2.
        flip: whether mirror images are allowed.
        mask_ratio: share of the area that a cutout at the end hides at strength 1, or None for the recipe's own.
        size: (h, w) of the result, or None for the images' own.
        scale: smallest and largest crop area at strength 1.
        paper: what is around drawings, 0 or 1, which are framed before anything else; None leaves images where they are.
    """

    recipe: str
    strength: float = 1.0
    flip: bool = True
    mask_ratio: float | None = None
    size: tuple[int, int] | None = None
    scale: tuple[float, float] = CROP
    paper: float | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, stream: RandomStream) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            if self.paper is not None:
                images = framed(to_float(images), self.paper)
            if self.recipe == "identity" or self.strength == 0:
                return _channels_last(to_float(images) if self.size is None else resize(images, self.size))
            makes = {"simclr": self._crops, "crop_flip": self._crops, "strokes": self._redrawn}
            x = makes.get(self.recipe, self._shifted)(images, stream)
            if self.mask_ratio is not None:
                x = cutout(x, stream, min(self.mask_ratio * self.strength, 1.0))
            elif self.recipe == "strong":
                side = stream.uniform() * min(0.5 * self.strength, 1.0)  # [B]
                x = cutout(x, stream, side.square())
            return _channels_last(x)

    def _shifted(self, images: Tensor, stream: RandomStream) -> Tensor:
        """``weak`` and ``strong``: translation and flip, then noise or RandAugment."""
        strong = self.recipe == "strong"
        if self.size is not None:
            images = resize(images, self.size)
        share = SHIFT * (min(self.strength, 1.0) if strong else self.strength)
        mirrored = stream.chance(0.5) if self.flip else None
        x = shift(images, whole_steps(images, stream, share), mirrored)
        if strong:
            return to_float(rand_augment(to_uint8(x), stream, self.strength))
        return gaussian_noise(x, stream, NOISE * self.strength)

    def _redrawn(self, images: Tensor, stream: RandomStream) -> Tensor:
        x = to_float(images) if self.size is None else resize(images, self.size)
        return redrawn(mirror(x, stream) if self.flip else x, stream, self.strength)

    def _crops(self, images: Tensor, stream: RandomStream) -> Tensor:
        """``simclr`` and ``crop_flip``: all geometry and the blur are one matrix a side, all colour one matrix a pixel."""
        s = self.strength
        low = 1 - (1 - self.scale[0]) * s
        high = 1 - (1 - self.scale[1]) * min(s, 1.0)
        low = min(max(low, min(SMALLEST_CROP, self.scale[0])), high)
        height, width = images.shape[2:]
        box = draw_boxes(stream, height, width, (low, high), (RATIO[0] ** s, RATIO[1] ** s))
        size = self.size or (height, width)
        mirrored = stream.chance(0.5) if self.flip else None
        if self.recipe == "crop_flip":
            return crop(images, box, size, mirrored)
        sigma = draw_sigma(stream, (SIGMA[0] * s, SIGMA[1] * s), 0.5)
        jitter = draw_jitter(stream, 0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, 0.8)
        grey = stream.chance(0.2) * min(s, 1.0)
        matrix, lift = colour_maps(jitter, grey, images.shape[1])
        vertical, horizontal = _kernel_places(size[0], images.device), _kernel_places(size[1], images.device)

        def view(x: Tensor, box: Tensor, mirrored: Tensor, sigma: Tensor, matrix: Tensor, lift: Tensor) -> Tensor:
            rows, columns = _box_weights(box, mirrored, size, (height, width))
            rows = torch.bmm(_blur_weights(sigma, vertical), rows)  # blur after interpolation: one product a side
            columns = torch.bmm(_blur_weights(sigma, horizontal), columns)
            return _recolour(_separable(to_float(x), rows, columns), matrix, lift)

        return _blocks(view, size, images, box, _flags(images, mirrored), sigma, matrix, lift)


def augmentation(
    recipe: str,
    strength: float = 1.0,
    flip: bool = True,
    mask_ratio: float | None = None,
    size: int | tuple[int, int] | None = None,
    scale: tuple[float, float] | None = None,
    paper: float | None = None,
) -> Augment:
    """The recipe as a function of images and draws.

    Args:
        recipe: one of RECIPES.
        strength: 0 (identity) to 2; 1 is the paper's recipe.
        flip: whether mirror images are allowed (not for digits or letters).
        mask_ratio: share of the area to hide by a cutout at strength 1; None leaves the recipe as published.
        size: side or (height, width) of the views; None keeps the images' size.
        scale: smallest and largest crop area at strength 1 (multi-crop: (.4, 1) global, (.05, .4) local); None is (.2, 1).
        paper: as in ``Augment``.
    Raises:
        UserError: for an unknown recipe or a number out of range.
    """
    if recipe not in RECIPES:
        raise UserError(f"an augmentation recipe is one of {', '.join(RECIPES)}, got {recipe!r}")
    if not 0 <= strength <= MAX_STRENGTH:
        raise UserError(
            f"augmentation_strength lies between 0 (identity) and {MAX_STRENGTH:g}, got {strength}; 1 is the paper's recipe"
        )
    if mask_ratio is not None and not 0 <= mask_ratio <= 1:
        raise UserError(f"a cutout's mask_ratio is a share of the area between 0 and 1, got {mask_ratio}")
    if scale is not None and recipe not in ("simclr", "crop_flip"):
        raise UserError(
            f"crop scales belong to the recipes simclr and crop_flip, got scale={scale} for {recipe}; leave scale out"
        )
    if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"crop scales are areas with 0 < smallest <= largest <= 1, got {scale}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and min(sides) < 1:
        raise UserError(f"a view's size is at least 1 pixel, got {size}")
    return Augment(recipe, float(strength), flip, mask_ratio, sides, scale or CROP, paper)


# Layout and number format.


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], the same memory format; float images pass."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def to_uint8(images: Tensor) -> Tensor:
    """float in [0, 1] -> uint8, rounded; uint8 images pass."""
    return images if images.dtype == torch.uint8 else images.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _flags(images: Tensor, mirrored: Tensor | None) -> Tensor:
    return mirrored if mirrored is not None else images.new_zeros(len(images), dtype=torch.bool)


def _blocks(work: Callable[..., Tensor], size: tuple[int, int], images: Tensor, *rows: Tensor) -> Tensor:
    """work(images, *rows) -> float32 [B, C, h, w], a block of rows at a time on the CPU, written as channels_last."""
    total, channels, height, width = images.shape
    result = torch.empty((total, channels, *size), device=images.device, memory_format=torch.channels_last)
    block = max(total, 1)
    if images.device.type == "cpu":
        block = max(1, BLOCK * torch.get_num_threads() // (channels * max(height * width, size[0] * size[1])))
    for start in range(0, total, block):
        part = slice(start, start + block)
        result[part] = work(images[part], *(row[part] for row in rows))
    return result


# Geometry.


def mirror(images: Tensor, stream: RandomStream, p: float = 0.5) -> Tensor:
    """Left-right flip with probability p."""
    return torch.where(stream.chance(p).view(-1, 1, 1, 1), images.flip(3), images)


def rotate_quarter(images: Tensor, k: Tensor) -> Tensor:
    """Exact rotation by k quarter turns counterclockwise, of any dtype; gradients pass.

    Args:
        images: [B, C, H, H].
        k: int64 [B], 0 to 3.
    Raises:
        UserError: if images are not square, since one batch then cannot hold both orientations.
    """
    if images.shape[2] != images.shape[3]:
        raise UserError(
            f"quarter turns need square images, got {images.shape[2]} x {images.shape[3]}; resize the data to squares"
        )
    k = k.view(-1, 1, 1, 1)
    half = torch.where(k >= 2, images.flip(2, 3), images)
    return torch.where(k % 2 == 1, half.transpose(2, 3).flip(2), half)


def translate(images: Tensor, stream: RandomStream, share: float = SHIFT) -> Tensor:
    """Move by whole pixels, uniform up to ``share`` of each side, borders filled by reflection; uint8 stays uint8."""
    return shift(images, whole_steps(images, stream, share))


def whole_steps(images: Tensor, stream: RandomStream, share: float) -> Tensor:
    """int64 [B, 2]: down and right, uniform over whole pixels within ``share`` of each side."""
    reach = torch.tensor([round(share * n) for n in images.shape[2:]], device=images.device)
    return (stream.uniform(2) * (2 * reach + 1)).floor().long().minimum(2 * reach) - reach


def shift(images: Tensor, steps: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Move each image down and right by steps [B, 2] whole pixels, borders reflected, then mirror those marked [B]."""
    total, channels, height, width = images.shape
    rows = _reflected(torch.arange(height, device=images.device) - steps[:, :1], height)  # [B, H]
    columns = torch.arange(width, device=images.device).expand(total, width)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    columns = _reflected(columns - steps[:, 1:], width)  # [B, W]
    rows = rows + height * torch.arange(total, device=images.device)[:, None]
    flat = (rows[:, :, None] * width + columns[:, None, :]).flatten()
    pixels = images.permute(0, 2, 3, 1).reshape(total * height * width, channels).index_select(0, flat)
    return pixels.view(total, height, width, channels).permute(0, 3, 1, 2)


def _reflected(index: Tensor, n: int) -> Tensor:
    """Indices beyond 0 .. n - 1 folded back, without repeating the edge."""
    period = max(2 * n - 2, 1)
    index = index.abs() % period
    return torch.minimum(index, period - index) if n > 1 else torch.zeros_like(index)


def draw_boxes(
    stream: RandomStream, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float] = RATIO
) -> Tensor:
    """float [B, 4] (top, left, height, width) in pixels: area uniform, log aspect uniform; the first of ten draws that fits,
    else the largest central box whose aspect is allowed."""
    u = stream.uniform(2, 10)  # [B, 2, tries]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, 0])
    aspect = (math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[:, 1]).exp()
    tall, wide = (area / aspect).sqrt(), (area * aspect).sqrt()  # [B, tries]
    slack = 1 + 1e-6  # rounding must not refuse the whole image
    fits = (tall <= height * slack) & (wide <= width * slack)
    first = fits.int().argmax(dim=1, keepdim=True)
    own = min(max(width / height, ratio[0]), ratio[1])
    found = fits.any(dim=1, keepdim=True)
    h = torch.where(found, tall.gather(1, first), min(height, width / own)).clamp(min(height, 1), height)
    w = torch.where(found, wide.gather(1, first), min(width, height * own)).clamp(min(width, 1), width)
    place = torch.where(found, stream.uniform(2), 0.5)
    return torch.cat([place[:, :1] * (height - h), place[:, 1:] * (width - w), h, w], dim=1)


def random_resized_crop(
    images: Tensor,
    stream: RandomStream,
    scale: tuple[float, float] = CROP,
    ratio: tuple[float, float] = RATIO,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A random box of each image, resized to ``size`` (the images' own by default)."""
    height, width = images.shape[2:]
    return crop(images, draw_boxes(stream, height, width, scale, ratio), size or (height, width))


def crop(images: Tensor, box: Tensor, size: tuple[int, int], mirrored: Tensor | None = None) -> Tensor:
    """Each image's box [B, 4] (top, left, height, width; at least a pixel) at ``size``, then mirrored where marked [B]."""

    def work(x: Tensor, box: Tensor, mirrored: Tensor) -> Tensor:
        rows, columns = _box_weights(box, mirrored, size, (x.shape[2], x.shape[3]))
        return _separable(to_float(x), rows, columns)

    return _blocks(work, size, images, box, _flags(images, mirrored))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole image at another size, bilinear with anti-aliasing."""
    height, width = images.shape[2:]
    return crop(images, torch.tensor([[0.0, 0.0, height, width]], device=images.device).expand(len(images), 4), size)


def _box_weights(box: Tensor, mirrored: Tensor, size: tuple[int, int], full: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows [B, h, H] and columns [B, w, W] of the interpolation."""
    top, left, height, width = box.unbind(dim=1)
    return weights_along(top, height, size[0], full[0]), weights_along(left, width, size[1], full[1], mirrored)


def weights_along(start: Tensor, length: Tensor, n: int, full: int, mirrored: Tensor | None = None) -> Tensor:
    """[B, n, full]: output pixel i as a triangle-weighted mean of the input pixels around it in [start, start + length)."""
    start, length = start[:, None], length[:, None]
    position = (torch.arange(n, device=start.device) + 0.5) / n  # [n]
    place = position if mirrored is None else torch.where(mirrored[:, None], 1 - position, position)
    centre = torch.addcmul(start, length, place.expand(len(start), n))  # [B, n]
    pixel = torch.arange(full, device=start.device) + 0.5
    inside = (pixel >= start) & (pixel < start + length)  # [B, full]
    reach = (length / n).clamp(min=1)
    weights = (pixel - centre[:, :, None]).abs_().div_(-reach[:, :, None]).add_(1).clamp_(min=0).mul_(inside[:, None, :])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [B, h, H] and columns [B, w, W] applied to float x [B, C, H, W] -> [B, C, h, w], as two batched products."""
    b, channels, height, width = x.shape
    h, w = rows.shape[1], columns.shape[1]
    wide = torch.bmm(x.reshape(b, channels * height, width), columns.transpose(1, 2))  # [B, C H, w]
    wide = wide.view(b, channels, height, w).transpose(1, 2).reshape(b, height, channels * w)
    return torch.bmm(rows, wide).view(b, h, channels, w).transpose(1, 2)


def cutout(images: Tensor, stream: RandomStream, share: float | Tensor, fill: float = 0.5) -> Tensor:
    """Hide a box of ``share`` (a number or [B]) of the area, of the image's aspect, whole pixels, uniformly placed."""
    height, width = images.shape[2:]
    side = torch.as_tensor(share, dtype=torch.float32, device=images.device).sqrt()
    place = stream.uniform(2)  # [B, 2]

    def covered(n: int, u: Tensor) -> Tensor:
        length = (side * n).round().expand_as(u)
        start = (u * (n - length + 1)).floor()
        pixel = torch.arange(n, device=images.device)
        return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # [B, n]

    hidden = covered(height, place[:, 0])[:, None, :, None] & covered(width, place[:, 1])[:, None, None, :]
    return to_float(images).masked_fill(hidden, fill)


# Colour, noise and blur.


def gaussian_noise(images: Tensor, stream: RandomStream, sd: float) -> Tensor:
    """Independent noise on every value, clipped to [0, 1]."""
    return torch.add(to_float(images), stream.normal(*images.shape[1:]), alpha=sd).clamp_(0, 1)


def draw_sigma(stream: RandomStream, sigma: tuple[float, float], p: float) -> Tensor:
    """float [B]: uniform in ``sigma`` with probability p, else 0."""
    u = stream.uniform(2)
    return torch.where(u[:, 0] < p, sigma[0] + (sigma[1] - sigma[0]) * u[:, 1], 0.0)


def blur(images: Tensor, stream: RandomStream, sigma: tuple[float, float] = SIGMA, p: float = 0.5) -> Tensor:
    """Gaussian blur, the kernel a tenth of the side wide (odd, at least 3), borders reflected."""
    return blurred(images, draw_sigma(stream, sigma, p))


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur by sigma [B] pixels; 0 leaves an image as it is."""

    height, width = images.shape[2:]
    vertical, horizontal = _kernel_places(height, images.device), _kernel_places(width, images.device)

    def work(x: Tensor, sigma: Tensor) -> Tensor:
        return _separable(to_float(x), _blur_weights(sigma, vertical), _blur_weights(sigma, horizontal))

    return _blocks(work, (height, width), images, sigma)


def _kernel_places(n: int, device: torch.device) -> Tensor:
    """float [2 r + 1, n, n]: which input pixel each value of a kernel of radius r meets at an output pixel, ends reflected."""
    radius = max(n // 10, 2) // 2
    offset = torch.arange(-radius, radius + 1, device=device)
    source = _reflected(torch.arange(n, device=device) + offset[:, None], n)  # [2 r + 1, n]
    return torch.nn.functional.one_hot(source, n).float()


def _blur_weights(sigma: Tensor, places: Tensor) -> Tensor:
    """[B, n, n]: each row a Gaussian kernel of sigma [B] around its pixel."""
    taps, n, _ = places.shape
    offset = torch.arange(taps, device=sigma.device) - taps // 2
    kernel = (-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]).square()).exp()  # [B, 2 r + 1]
    return ((kernel / kernel.sum(dim=1, keepdim=True)) @ places.flatten(1)).view(-1, n, n)


def _grey_weights(channels: int, device: torch.device) -> Tensor:
    return torch.tensor(GREY if channels == 3 else [1 / channels] * channels, device=device)


def grayscale(images: Tensor, stream: RandomStream, p: float = 0.2, amount: float = 1.0) -> Tensor:
    """Blend ``amount`` of the grey image in with probability p; images without 3 channels stay."""
    x = to_float(images)
    if x.shape[1] != 3:
        return x
    grey = torch.einsum("bchw,c->bhw", x, _grey_weights(3, x.device))[:, None]
    return torch.lerp(x, grey.expand_as(x), (stream.chance(p) * amount).view(-1, 1, 1, 1))


Jitter = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Brightness, contrast and saturation factors [B], hue in turns [B], order int64 [B, 4]."""


def draw_jitter(stream: RandomStream, brightness: float, contrast: float, saturation: float, hue: float, p: float) -> Jitter:
    """Factors uniform in [max(0, 1 - a), 1 + a], hue in [-a, a] turns at most half; identity with probability 1 - p."""
    u = stream.uniform(5)
    order = stream.permutations(4)
    chosen = u[:, 4] < p

    def factor(column: int, a: float) -> Tensor:
        low = max(0.0, 1 - a)
        return torch.where(chosen, low + (1 + a - low) * u[:, column], 1.0)

    turn = min(hue, 0.5)
    angle = torch.where(chosen, turn * (2 * u[:, 3] - 1), 0.0)
    return factor(0, brightness), factor(1, contrast), factor(2, saturation), angle, order


def colour_jitter(
    images: Tensor,
    stream: RandomStream,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
    p: float = 1.0,
) -> Tensor:
    """Brightness, contrast, saturation and hue in random order, as one matrix a pixel."""
    return recoloured(images, draw_jitter(stream, brightness, contrast, saturation, hue, p))


def recoloured(images: Tensor, jitter: Jitter, grey: Tensor | None = None) -> Tensor:
    """Apply drawn jitter, then blend a share ``grey`` [B] of the grey image in."""
    matrix, lift = colour_maps(jitter, torch.zeros_like(jitter[0]) if grey is None else grey, images.shape[1])

    def work(x: Tensor, matrix: Tensor, lift: Tensor) -> Tensor:
        return _recolour(to_float(x), matrix, lift)

    return _blocks(work, (images.shape[2], images.shape[3]), images, matrix, lift)


def _recolour(x: Tensor, matrix: Tensor, lift: Tensor) -> Tensor:
    """matrix [b, C, C] on every pixel of float x [b, C, H, W], plus lift [b, C, C] on the mean colour; clipped to [0, 1]."""
    b, channels, height, width = x.shape
    pixels = x.reshape(b, channels, height * width)
    bias = torch.bmm(lift, pixels.mean(dim=2, keepdim=True))  # [b, C, 1]
    return torch.baddbmm(bias, matrix, pixels).clamp_(0, 1).view(b, channels, height, width)


def colour_maps(jitter: Jitter, grey: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The chain of colour operations as one map: pixel -> matrix pixel + lift mean, with the image's mean colour.

    Contrast takes a pixel to c pixel + (1 - c) luminance of the mean; so it takes the mean itself through another matrix. The
    chain is therefore followed for pixels and for the mean, and what the two differ by acts on the mean.

    Args:
        jitter: factors, hue and order.
        grey: float [B], share of the grey image blended in at the end.
        channels: C.
    Returns:
        matrix and lift, float [B, C, C].
    """
    brightness, contrast, saturation, hue, order = jitter
    device = brightness.device
    eye = torch.eye(channels, device=device)
    to_grey = _grey_weights(channels, device).expand(channels, channels)  # every row gives the luminance
    same = eye.expand(len(order), channels, channels)

    def towards_grey(factor: Tensor) -> Tensor:
        return to_grey + factor[:, None, None] * (eye - to_grey)

    bright, flat = brightness[:, None, None] * eye, contrast[:, None, None] * eye
    vivid, turned = (towards_grey(saturation), hue_matrix(hue)) if channels == 3 else (same, same)
    of_pixels = torch.stack([bright, flat, vivid, turned], dim=1)
    of_mean = torch.stack([bright, towards_grey(contrast), vivid, turned], dim=1)
    where = torch.arange(len(order), device=device)[:, None]
    chain = torch.cat([of_pixels[where, order], of_mean[where, order]])  # [2 B, 4, C, C], in each image's own order
    total = torch.bmm(torch.bmm(chain[:, 3], chain[:, 2]), torch.bmm(chain[:, 1], chain[:, 0]))
    if channels == 3:
        total = torch.bmm(towards_grey(1 - grey).repeat(2, 1, 1), total)
    matrix, mean = total.chunk(2)
    return matrix, mean - matrix


def hue_matrix(turns: Tensor) -> Tensor:
    """[B, 3, 3]: RGB turned about the grey axis by ``turns`` [B]; a third of a turn takes red to green to blue exactly."""
    angle = (2 * math.pi * turns)[:, None, None]
    grey = torch.full((3, 3), 1 / 3, device=turns.device)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=turns.device) / math.sqrt(3)
    return grey + angle.cos() * (torch.eye(3, device=turns.device) - grey) + angle.sin() * across


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB [B, 3, H, W] -> CIE Lab (D65): L in 0 .. 100, a and b about -110 .. 110, float32.

    Raises:
        UserError: unless images have 3 channels.
    """
    if images.shape[1] != 3:
        raise UserError(
            f"Lab colours need images of 3 channels, got {images.shape[1]}; give colour images or leave this method out"
        )
    x = to_float(images)
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    to_xyz = torch.tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]], device=x.device
    )
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(dim=1, keepdim=True), linear)  # relative to white
    root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = root.unbind(dim=1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=1)
