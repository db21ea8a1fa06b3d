"""Colour as a task: scaled Lab channels, the quantised ab plane, and an encoder made of one half for each group of channels.

B images, H, W size, Q colour bins.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from methods.contracts import Context, TrainingError
from methods.parts.augment import rgb_to_lab
from methods.parts.encoders import Encoder, build_encoder

SPAN = 110.0
"""a and b lie within -110 .. 110 for all colours of a screen."""


def needs_colour(method: str, context: Context) -> None:
    """Raises TrainingError unless the images have three channels."""
    if context.shape[0] != 3:
        raise TrainingError(f"{method} needs images of 3 colour channels, got {context.shape[0]}; leave it out of methods")


def lab01(images: Tensor) -> Tensor:
    """sRGB [B, 3, H, W] to Lab, each channel scaled to [0, 1]: L / 100, (a + 110) / 220, (b + 110) / 220."""
    with torch.autocast(images.device.type, enabled=False):
        lab = rgb_to_lab(images)
        return torch.cat([lab[:, :1] / 100, (lab[:, 1:] + SPAN) / (2 * SPAN)], dim=1).clamp(0, 1)


@lru_cache(maxsize=8)
def possible_bins(cells: int) -> Tensor:
    """int64 [cells^2]: a square grid over the ab plane, its cells numbered 0 .. Q - 1 where a screen colour falls into them.

    Cells that no colour reaches are numbered with the nearest possible one (Zhang 2016 keeps 313 of its cells of size 10).
    """
    side = torch.linspace(0, 1, 33)
    cube = torch.cartesian_prod(side, side, side).T.reshape(1, 3, -1, 1)
    cell = _cell(lab01(cube)[:, 1:], cells).flatten()
    possible = cell.unique()
    centres = torch.cartesian_prod(torch.arange(cells), torch.arange(cells)).float()
    return torch.cdist(centres, centres[possible]).argmin(1)


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
    places = torch.arange(cells, device=numbers.device)
    middle = (torch.cartesian_prod(places, places) + 0.5) / cells  # cells^2 2
    count = int(numbers.max()) + 1
    total = torch.zeros(count, 2, device=numbers.device).index_add(0, numbers, middle)
    return total / torch.bincount(numbers, minlength=count)[:, None]


def rebalanced(frequency: Tensor, mix: float = 0.5) -> Tensor:
    """float [Q]: weights of classes of this empirical frequency (Zhang 2016, equation 4), with mean 1 over the data.

    w is the inverse of (1 - mix) x frequency + mix / Q.
    """
    share = frequency / frequency.sum()
    w = 1 / ((1 - mix) * share + mix / len(share))
    return w / (share * w).sum()


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


class LabEncoder(Encoder):
    """Two encoders of half the study's width, one that sees the lightness and one that sees the colours.

    The embedding is both of theirs side by side (Zhang 2017, arXiv:1611.09842; Tian 2019, arXiv:1906.05849).

    Attributes:
        light: Encoder of L, [B, 1, H, W].
        colour: Encoder of ab, [B, 2, H, W].
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        _, h, w = context.shape
        self.shape = context.shape
        self.light = build_encoder(context.encoder, (1, h, w), (0.5,), (0.25,), width=0.5)
        self.colour = build_encoder(context.encoder, (2, h, w), (0.5, 0.5), (0.1, 0.1), width=0.5)
        self.dim = self.light.dim + self.colour.dim
        self.layers = self.light.layers

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of lightness and of colours, of RGB images [B, 3, H, W]."""
        lab = lab01(images)
        return self.light(lab[:, :1]), self.colour(lab[:, 1:])

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.halves(images), dim=1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        lab = lab01(images)
        light, colour = self.light.maps(lab[:, :1]), self.colour.maps(lab[:, 1:])
        return {name: torch.cat([light[name], colour[name]], dim=1) for name in self.layers}
