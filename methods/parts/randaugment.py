"""RandAugment's image operations as PIL defines them, for a whole batch of uint8 images at once.

Cubuk et al. 2019, https://arxiv.org/abs/1909.13719, with the list and ranges of FixMatch, https://arxiv.org/abs/2001.07685
(table 12): operations are drawn uniformly, each with its own uniformly drawn magnitude, and are always applied. The images of
a slot are sorted by operation, so that each runs once, on its own images (one transfer of 14 counts to the host a slot).

``strength`` multiplies how far a magnitude lies from identity: 0 leaves the images as they are, 1 is the paper, 2 goes twice
as far where an operation has that far to go. Autocontrast and equalize have no magnitude: they are blended in, fully from
strength 1 on.

Deviations: autocontrast computes in float32 (a grey level of rounding); images without 3 channels keep their saturation;
magnitudes of rotation, shear and translation are uniform on both sides of identity.

Shapes: n images of one operation, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.batch import RandomStream

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
FIRST_GEOMETRIC = OPERATIONS.index("rotate")


def rand_augment(images: Tensor, stream: RandomStream, strength: float = 1.0, operations: int = 2) -> Tensor:
    """``operations`` uniformly drawn operations on every image, one after the other.

    Args:
        images: uint8 [B, C, H, W].
        stream: random numbers for these rows.
        strength: distance from identity in units of the paper's; 0 changes nothing.
        operations: how many.
    Returns:
        uint8 [B, C, H, W], channels_last.
    """
    kinds = stream.integers(len(OPERATIONS), operations)  # [B, operations]
    amounts = stream.uniform(2, operations)  # [B, (magnitude, side), operations]
    for slot in range(operations):
        signs = torch.where(amounts[:, 1, slot] < 0.5, -1.0, 1.0)
        images = apply(images, kinds[:, slot], amounts[:, 0, slot], signs, strength)
    return images


def apply(images: Tensor, kind: Tensor, amount: Tensor, sign: Tensor, strength: float = 1.0) -> Tensor:
    """One operation on each image.

    Args:
        images: uint8 [B, C, H, W].
        kind: int64 [B], positions in OPERATIONS.
        amount: float [B] in [0, 1), from identity to the operation's largest magnitude.
        sign: float [B], -1 or 1, the side to which an image is turned, sheared or moved.
        strength: multiplies the magnitudes.
    Returns:
        uint8 [B, C, H, W], channels_last.
    """
    order = kind.argsort(stable=True)
    counts = torch.bincount(kind, minlength=len(OPERATIONS)).tolist()
    pixels = images.permute(0, 2, 3, 1)  # [B, H, W, C]
    result = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    end = sum(counts[:FIRST_GEOMETRIC])
    for name, rows in zip(OPERATIONS[:FIRST_GEOMETRIC], order[:end].split(counts[:FIRST_GEOMETRIC]), strict=True):
        if len(rows):
            result[rows] = _recoloured(name, pixels[rows].permute(0, 3, 1, 2), amount[rows], strength).permute(0, 2, 3, 1)
    rows = order[end:]
    if len(rows):
        moves = _matrices(kind[rows], amount[rows] * sign[rows] * strength, images.shape[2], images.shape[3])
        result[rows] = nearest_affine(pixels[rows].permute(0, 3, 1, 2), moves).permute(0, 2, 3, 1)
    return result.permute(0, 3, 1, 2)


def _recoloured(name: str, x: Tensor, amount: Tensor, strength: float) -> Tensor:
    """uint8 [n, C, H, W] -> the same, by the operation ``name``; amount [n]."""
    if name == "identity" or (name == "saturation" and x.shape[1] != 3):
        return x
    if name == "autocontrast":
        return blend(x, autocontrast(x), min(strength, 1.0))
    if name == "equalize":
        return blend(x, equalize(x), min(strength, 1.0))
    if name == "posterize":
        return posterize(
            x,
            (8 - (strength * amount * 5).floor().clamp(max=4)).long() if strength else amount.new_full(amount.shape, 8).long(),
        )
    if name == "solarize":
        return solarize(x, 256 * (1 - strength * amount).clamp(min=0))
    factor = (1 - strength * (0.05 + 0.9 * amount)).clamp(min=0)  # the paper's [.05, .95]
    return {"brightness": brightness, "saturation": saturation, "contrast": contrast, "sharpness": sharpness}[name](x, factor)


def blend(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    """first + share (second - first), cut to whole grey levels as PIL's Image.blend does; share [n] or a number."""
    if isinstance(share, Tensor):
        share = share.view(-1, 1, 1, 1)
    elif share == 1:
        return second.to(torch.uint8)
    start = first.float()
    return (
        torch.lerp(start, second.float().expand_as(start), torch.as_tensor(share, device=first.device))
        .clamp_(0, 255)
        .to(torch.uint8)
    )


def luminance(x: Tensor) -> Tensor:
    """PIL's mode L (ITU-R 601): uint8 [n, C, H, W] -> int32 [n, 1, H, W]; the channels' mean unless C = 3."""
    if x.shape[1] != 3:
        return x.float().mean(dim=1, keepdim=True).round().int()
    red, green, blue = x.int().unbind(dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return blend(torch.zeros_like(x), x, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    return blend(luminance(x).expand_as(x), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = (luminance(x).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return blend(mean.expand_as(x), x, factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards PIL's SMOOTH filter (3x3, centre 5 of 13); the outermost pixels are left as they are."""
    if min(x.shape[2:]) < 3:
        return x
    wide = x.int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = wide.clone()
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * wide[:, :, 1:-1, 1:-1]).float() / 13 + 0.5).floor().int()
    return blend(smooth, x, factor)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits; bits int64 [n], 0 to 8."""
    return x & (256 - (1 << (8 - bits))).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert grey levels at or above threshold, float [n] in 0 .. 256."""
    return torch.where(x >= threshold.view(-1, 1, 1, 1), 255 - x, x)


def autocontrast(x: Tensor) -> Tensor:
    """Stretch every channel to 0 .. 255; channels of one grey level stay."""
    values = x.flatten(2).float()
    low, high = values.amin(dim=2, keepdim=True), values.amax(dim=2, keepdim=True)
    stretched = ((values - low) * (255 / (high - low).clamp(min=1))).clamp_(0, 255).floor()
    return torch.where(high > low, stretched, values).to(torch.uint8).view(x.shape)


def equalize(x: Tensor) -> Tensor:
    """Flatten every channel's histogram, with PIL's integer rule."""
    n, channels, height, width = x.shape
    values = x.flatten(2).long()  # [n, C, HW]
    histogram = values.new_zeros(n, channels, 256).scatter_add_(2, values, torch.ones_like(values))
    last = histogram.gather(2, values.amax(dim=2, keepdim=True))  # how many pixels have the brightest level
    step = (height * width - last) // 255
    table = (step // 2 + histogram.cumsum(dim=2) - histogram) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=x.device))
    return table.gather(2, values).to(torch.uint8).view(x.shape)


def _matrices(kind: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """float [n, 2, 3]: for each image, where in the input (x, y in pixels) an output position is found."""

    def when(name: str) -> Tensor:
        return torch.where(kind == OPERATIONS.index(name), magnitude, 0.0)

    angle = -math.radians(30) * when("rotate")  # counterclockwise in an image whose y points down
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    first = torch.stack([cos, sin + 0.3 * when("shear_x"), x - x * cos - y * sin + 0.3 * width * when("translate_x")], dim=1)
    second = torch.stack([-sin + 0.3 * when("shear_y"), cos, y + x * sin - y * cos + 0.3 * height * when("translate_y")], dim=1)
    return torch.stack([first, second], dim=1)


def nearest_affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Image.transform(AFFINE, NEAREST) with black beyond the edges.

    Args:
        x: uint8 [n, C, H, W].
        matrix: float [n, 2, 3], from output to input positions in pixels (x, y), PIL's six numbers.
    Returns:
        uint8 [n, C, H, W], channels_last.
    """
    n, channels, height, width = x.shape
    ys = (torch.arange(height, device=x.device) + 0.5).view(1, height, 1)
    xs = (torch.arange(width, device=x.device) + 0.5).view(1, 1, width)
    a, b, c, d, e, f = matrix.reshape(n, 6, 1, 1).unbind(dim=1)
    left, top = (a * xs + b * ys + c).floor_().long(), (d * xs + e * ys + f).floor_().long()  # [n, H, W]
    inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    flat = (image * height + top.clamp_(0, height - 1)) * width + left.clamp_(0, width - 1)
    pixels = x.permute(0, 2, 3, 1).reshape(n * height * width, channels)[flat.flatten()]
    return (pixels.view(n, height, width, channels) * inside[..., None]).permute(0, 3, 1, 2)
