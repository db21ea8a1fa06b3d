"""Drawings in the middle and at one size: where on the paper and how large somebody drew says little about what was drawn, and
with few drawings to learn from it need not be learnt.

Moment normalisation (Casey 1970, "Moment normalization of handprinted characters", IBM Journal of Research and Development
14:548), without its slant: the ink's centre of mass moves to the middle, and its standard deviation, the root of the mean over
both axes' variances, becomes ``SPREAD``. Proportions stay. The ends of a drawing that reaches far from its middle are cut off:
sizes at which none were did not raise one-shot accuracy.

B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.parts.strokes import affine, warped

SPREAD = 0.42
"""Standard deviation of a framed drawing's ink, the picture being -1 .. 1."""
FAINT = 0.15
"""What differs from the paper by less, of 1, is no ink: noise and compression would pull the frame to the middle. Paper that
is itself further from white or black counts as ink wherever it shows."""
ZOOM = (0.35, 1.6)
"""The frame's least and largest side, in sides: a dot is not blown up to the whole picture."""


def paper_of(mean: Sequence[float]) -> float:
    """What is around drawings, 0 or 1, by the mean of their images' channels."""
    return float(sum(mean) / len(mean) > 0.5)


def frames(x: Tensor, paper: float) -> Tensor:
    """Where the ink is.

    Args:
        x: float [B, C, H, W] in [0, 1].
        paper: what is around a drawing, 0 or 1.
    Returns:
        float32 [B, 2, 3], for ``strokes.warped``: the whole picture where there is no ink.
    """
    ink = ((x.float().mean(1) - paper).abs() - FAINT).clamp_min(0)  # B H W
    total = ink.sum((1, 2))
    blank = total == 0
    down, right = (((torch.arange(n, device=x.device) + 0.5) * 2 / n - 1) for n in x.shape[2:])
    mass = [ink.sum(axis) / total.masked_fill(blank, 1)[:, None] for axis in (1, 2)]  # B W and B H
    means = [(m * at).sum(1) for m, at in zip(mass, (right, down), strict=True)]  # B each
    variances = [(m * (at - mean[:, None]).square()).sum(1) for m, at, mean in zip(mass, (right, down), means, strict=True)]
    side = (((variances[0] + variances[1]) / 2).sqrt() / SPREAD).clamp(*ZOOM).masked_fill(blank, 1)
    straight = torch.zeros_like(side)
    return affine(straight, straight, side, side, torch.stack(means, dim=1) / 2)


def framed(x: Tensor, paper: float) -> Tensor:
    """Every drawing in its frame, around which there is nothing but paper; arguments as in ``frames``, the result float32."""
    ink = warped((x.float() - paper).abs(), frames(x, paper), outside="zeros")
    return (paper - ink).abs()
