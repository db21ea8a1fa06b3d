"""Colour as a task: the quantised ab plane, weights of rare colours, and the way back to RGB.

B images, H, W size, Q colour bins.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.contracts import Context, TrainingError
from methods.data.records import Images
from methods.parts.composites import LAB_STD, SPAN, LabEncoder, lab01


def needs_colour(method: str, context: Context) -> None:
    """Raises TrainingError unless the images have three channels."""
    if context.shape[0] != 3:
        raise TrainingError(f"{method} needs images of 3 colour channels, got {context.shape[0]}; leave it out of methods")


@lru_cache(maxsize=8)
def _possible(cells: int) -> Tensor:
    """int64 [Q]: the cells of a square grid over the ab plane that a screen colour falls into, in order."""
    side = torch.linspace(0, 1, 33)
    cube = torch.cartesian_prod(side, side, side).T.reshape(1, 3, -1, 1)
    return _cell(lab01(cube)[:, 1:], cells).unique()


def possible_bins(cells: int) -> Tensor:
    """int64 [cells^2]: each cell's bin, 0 .. Q - 1 for those that screen colours fall into.

    Cells that no colour reaches have the nearest possible one's bin (Zhang 2016 keeps 313 of its cells of size 10).
    """
    centres = torch.cartesian_prod(torch.arange(cells), torch.arange(cells)).float()
    # By differences, which are exact here: a matrix product would break ties between neighbours by its rounding.
    return torch.cdist(centres, centres[_possible(cells)], compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def _cell(ab: Tensor, cells: int) -> Tensor:
    """int64 [B, H, W]: the cell of scaled ab [B, 2, H, W]."""
    at = (ab * cells).long().clamp(0, cells - 1)
    return at[:, 0] * cells + at[:, 1]


def colour_bins(ab: Tensor, numbers: Tensor) -> Tensor:
    """int64 [B, H, W]: the bin, 0 .. Q - 1, of scaled ab [B, 2, H, W]; ``numbers`` as ``possible_bins`` gives them."""
    return numbers[_cell(ab, math.isqrt(len(numbers)))]


def bin_colours(numbers: Tensor) -> Tensor:
    """float [Q, 2]: the scaled ab in the middle of each bin."""
    cells = math.isqrt(len(numbers))
    possible = _possible(cells).to(numbers.device)
    return (torch.stack([possible // cells, possible % cells], dim=1) + 0.5) / cells


def rebalanced(frequency: Tensor, mix: float = 0.5) -> Tensor:
    """float [Q]: weights of classes of this empirical frequency (Zhang 2016, equation 4), with mean 1 over the data.

    w is the inverse of (1 - mix) x frequency + mix / Q.
    """
    share = frequency / frequency.sum()
    w = 1 / ((1 - mix) * share + mix / len(share))
    return w / (share * w).sum()


def bin_weights(images: Images, numbers: Tensor, size: tuple[int, int], sample: int = 2048) -> Tensor:
    """float [Q]: ``rebalanced`` weights of the bins in a sample of evenly spaced images, averaged down to ``size``."""
    index = torch.linspace(0, len(images) - 1, min(len(images), sample)).long()
    ab = F.adaptive_avg_pool2d(lab01(images.take(index))[:, 1:], size)
    counts = torch.bincount(colour_bins(ab, numbers).flatten(), minlength=int(numbers.max()) + 1)
    return rebalanced(counts.float())


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Scaled Lab [B, 3, H, W] back to sRGB in [0, 1]; colours that no screen shows are clipped."""
    x = lab.float()
    fy = (x[:, 0] * 100 + 16) / 116
    fx = fy + (x[:, 1] * 2 * SPAN - SPAN) / 500
    fz = fy - (x[:, 2] * 2 * SPAN - SPAN) / 200
    f = torch.stack([fx, fy, fz], dim=1)
    white = torch.tensor([0.950456, 1.0, 1.088754], device=x.device).view(1, 3, 1, 1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * white
    back = torch.tensor(
        [[3.240479, -1.537150, -0.498535], [-0.969256, 1.875992, 0.041556], [0.055648, -0.204043, 1.057311]], device=x.device
    )
    linear = torch.einsum("ij,bjhw->bihw", back, xyz).clamp_min(0)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)


def halved(context: Context) -> LabEncoder:
    """Two fresh encoders of half the study's width: one for the lightness, one for the colours."""
    light, colour = (context.build(context.encoder, (n, *context.shape[1:]), (0.5,) * n, LAB_STD[n], width=0.5) for n in (1, 2))
    return LabEncoder(light, colour, context.data.mean, context.data.std)
