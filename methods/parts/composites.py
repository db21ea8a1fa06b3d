"""Encoders that split or drop colours before an encoder of the study sees them.

B images, H, W size, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.encoder import Encoder, Statistics
from methods.parts.augment import rgb_to_lab
from methods.parts.encoder_base import Normalise

SPAN = 110.0
"""a and b lie within -110 .. 110 for all colours of a screen."""

LAB_STD: dict[int, Statistics] = {1: (0.25,), 2: (0.1, 0.1)}
"""Usual standard deviations of scaled L, and of scaled a and b, around their middle."""


def lab01(images: Tensor) -> Tensor:
    """sRGB [B, 3, H, W] to Lab, each channel scaled to [0, 1]: L / 100, (a + 110) / 220, (b + 110) / 220."""
    with torch.autocast(images.device.type, enabled=False):
        lab = rgb_to_lab(images)
        return torch.cat([lab[:, :1] / 100, (lab[:, 1:] + SPAN) / (2 * SPAN)], dim=1).clamp(0, 1)


class LabEncoder(Encoder):
    """Two encoders, one that sees the lightness of an image and one that sees its colours; their embeddings stand side by side.

    Zhang, Isola & Efros 2017, arXiv:1611.09842; Tian, Krishnan & Isola 2019, arXiv:1906.05849.

    Attributes:
        light: encoder of L, [B, 1, H, W] in [0, 1].
        colour: encoder of a and b, [B, 2, H, W] in [0, 1].
    """

    name = "lab"

    def __init__(self, light: Encoder, colour: Encoder, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.light, self.colour = light, colour
        self.normalise = Normalise(mean, std)  # not used for images, which Lab scales; the encoder's file reads it
        self.shape = (3, *light.shape[1:])
        self.dim = light.dim + colour.dim
        self.layers = light.layers

    def forward(self, images: Tensor) -> Tensor:
        lab = lab01(images)
        return torch.cat([self.light(lab[:, :1]), self.colour(lab[:, 1:])], dim=1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        lab = lab01(images)
        light, colour = self.light.maps(lab[:, :1]), self.colour.maps(lab[:, 1:])
        return {name: torch.cat([light[name], colour[name]], dim=1) for name in self.layers}

    def composed_of(self) -> tuple[Encoder, ...]:
        return self.light, self.colour

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        light, colour = self.light.parts(), self.colour.parts()
        return {name: (*light[name], *colour[name]) for name in light}


class GreyEncoder(Encoder):
    """An encoder that sees only the lightness of an image, three times over (Zhang, Isola & Efros 2016, arXiv:1603.08511).

    Attributes:
        sight: encoder of [B, 3, H, W] in [0, 1].
    """

    name = "grey"

    def __init__(self, sight: Encoder) -> None:
        super().__init__()
        self.sight = sight
        mean, std = (sight.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
        self.normalise = Normalise(tuple(mean), tuple(std))  # the inner encoder normalises; this encoder's file reads it
        self.shape, self.dim, self.layers = sight.shape, sight.dim, sight.layers

    @staticmethod
    def grey(images: Tensor) -> Tensor:
        """Lightness in [0, 1] as an image of three channels."""
        return lab01(images)[:, :1].expand(-1, 3, -1, -1)

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.sight(self.grey(images))
        return z

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.sight.maps(self.grey(images))

    def composed_of(self) -> tuple[Encoder, ...]:
        return (self.sight,)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        return self.sight.parts()
