"""Drawings as another hand would draw them: small affine maps, elastic bending and thicker or thinner strokes, batched.

Affine ranges after Koch, Zemel & Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition" (rotation
within 10 degrees, scale .8-1.2, shift of 2 in 105 pixels); elastic bending after Simard, Steinkraus & Platt 2003, "Best
practices for convolutional neural networks".

Deviations: every part of the affine map is always drawn (Koch: each with probability .5), the scale of each axis for itself,
log uniform, and shifts go further; bending is a coarse grid of normal displacements, interpolated, in place of a filtered
field; strokes change by blending with the 3 x 3 maximum or minimum, so that ink may be dark or light.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import RandomStream

ANGLE = math.radians(10)
SHEAR = 0.15
SCALE = 1.2
SHIFT = 0.05
"""Of the side."""
BEND = 0.02
"""Standard deviation of the displacement at a point of the coarse grid, in sides."""
BENDS = 4
"""Points of the coarse grid along a side."""
INK = 0.3
"""Largest share of the thickest or thinnest strokes that is blended in."""


def redrawn(x: Tensor, stream: RandomStream, strength: float) -> Tensor:
    """Every image by a hand of its own.

    Args:
        x: float [B, C, H, W] in [0, 1].
        stream: random numbers for these rows.
        strength: multiplies all magnitudes; 0 changes nothing.
    Returns:
        float32 [B, C, H, W] in [0, 1].
    """
    u = stream.uniform(7, low=-strength, high=strength)  # [B, 7]
    matrix = affine(u[:, 0] * ANGLE, u[:, 1] * SHEAR, SCALE ** u[:, 2], SCALE ** u[:, 3], SHIFT * u[:, 4:6])
    bend = BEND * strength * stream.normal(2, BENDS, BENDS)  # [B, 2, 4, 4]
    field = F.interpolate(bend, x.shape[2:], mode="bicubic", align_corners=True)  # [B, 2, H, W]
    return inked(warped(x, matrix, 2 * field.permute(0, 2, 3, 1)), INK * u[:, 6])


def affine(angle: Tensor, shear: Tensor, tall: Tensor, wide: Tensor, shift: Tensor) -> Tensor:
    """float [B, 2, 3], for ``warped``: where in the input each point of the output comes from, the sides being -1 .. 1.

    Args:
        angle: [B], radians.
        shear: [B], of x by y.
        tall, wide: [B], scales along y and x; above 1 shows the input smaller.
        shift: [B, 2], x and y, in sides.
    """
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([cos * wide, (shear * cos - sin) * tall, 2 * shift[:, 0]], dim=1)
    y = torch.stack([sin * wide, (shear * sin + cos) * tall, 2 * shift[:, 1]], dim=1)
    return torch.stack([x, y], dim=1)


def warped(x: Tensor, matrix: Tensor, field: Tensor | None = None, outside: str = "border") -> Tensor:
    """Images [B, C, H, W] seen through an affine map [B, 2, 3] and displacements [B, H, W, 2]; outside is the border, or zeros.

    Bicubic, since bilinear interpolation fades strokes that are a pixel wide.
    """
    height, width = x.shape[2:]
    down, right = (((torch.arange(n, device=x.device) + 0.5) * 2 / n - 1) for n in (height, width))
    # By element and not as a product of matrices, whose rounding may depend on the size of the batch.
    rows = matrix[:, :, :, None, None]
    grid = rows[:, :, 0] * right + rows[:, :, 1] * down[:, None] + rows[:, :, 2]  # [B, 2, H, W]
    where = grid.permute(0, 2, 3, 1)
    where = where if field is None else where + field
    seen = F.grid_sample(x, where, mode="bicubic", padding_mode=outside, align_corners=False)
    return seen.clamp_(0, 1)


def inked(x: Tensor, amount: Tensor) -> Tensor:
    """Strokes thicker or thinner: images blended with their 3 x 3 maximum where ``amount`` [B] is above 0, else minimum."""
    amount = amount.view(-1, 1, 1, 1)
    most, least = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return torch.lerp(x, torch.where(amount > 0, most, least), amount.abs().expand_as(x)).clamp_(0, 1)
