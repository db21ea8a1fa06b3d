"""How a network of another's making is shown the study's images: its number of channels, its own size and normalisation.

B images, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoder import Shape, Statistics
from methods.parts.encoder_base import Normalise
from search_spaces.domains import UserError

STEP = 32
"""Sizes are multiples of it: what the usual networks divide height and width by in all."""

SMALLER = 5 / 7
"""Of its usual size, at which a network is shown images that are smaller still: 160 of 224, for half the cost. On CIFAR-10 with
250 labels a linear probe of EfficientNet-Lite0 is as good at 160 pixels as at 224, and 5 points worse at 96."""


def shown_size(shape: Shape, usual: int, square: bool = False, size: int | None = None) -> tuple[int, int]:
    """Height and width at which a network of the ``usual`` size is shown images of ``shape``.

    Chosen by cost where ``size`` is None: as large as the images are, but no larger than ``usual`` and no smaller than
    ``SMALLER`` of it. The area is that of a square of this side; proportions stay, but for networks that take squares only.

    Raises:
        UserError: ``size`` is below 32.
    """
    _, height, width = shape
    side = math.sqrt(height * width)
    if size is None:
        least = min(usual, _step(SMALLER * usual))
        size = usual if side >= usual else min(max(_step(side), least), usual)
    elif size < STEP:
        raise UserError(f"an encoder's size must be at least {STEP} pixels, got {size}; leave it out to have it chosen")
    if square or height == width:
        return size, size
    return _step(size * height / side), _step(size * width / side)


class Shown(nn.Module):
    """Images [B, C, H, W], uint8 or float in [0, 1], to what a network takes, float [B, c, h, w], normalised.

    One channel is repeated where the network takes three; otherwise, where the numbers differ, all the network's channels are
    learned mixtures that begin as the mean. Images of another size than ``shape`` (crops, tiles) are enlarged by the same
    factor, so that what they show keeps its scale.
    """

    def __init__(self, shape: Shape, mean: Statistics, std: Statistics, size: tuple[int, int], square: bool = False) -> None:
        """
        Args:
            shape: (C, H, W) of the study's images.
            mean, std: the network's own, of each of its c channels.
            size: (h, w) at which it is shown images of ``shape``.
            square: whether it takes no other size.
        """
        super().__init__()
        self.shape, self.size, self.square = shape, size, square
        self.normalise = Normalise(mean, std)
        self.mix: nn.Parameter | None = None
        own = len(mean)
        if shape[0] not in (1, own):
            self.mix = nn.Parameter(torch.full((own, shape[0], 1, 1), 1 / shape[0]))

    def forward(self, images: Tensor) -> Tensor:
        """float [B, c, h, w], channels_last.

        Raises:
            UserError: the images have another number of channels than the encoder was built for.
        """
        if images.dim() != 4 or images.shape[1] != self.shape[0]:
            raise UserError(
                f"this encoder takes images [B, {self.shape[0]}, H, W], got {list(images.shape)}; "
                "build one for images with that many channels"
            )
        if self.mix is not None:
            images = F.conv2d(images if images.is_floating_point() else images.float() / 255, self.mix)
        elif self.shape[0] == 1:
            images = images.expand(-1, self.normalise.mean.shape[1], -1, -1)
        x: Tensor = self.normalise(images)
        size = self._size(x.shape[2], x.shape[3])
        if x.shape[2:] == size:
            return x
        smaller = size[0] < x.shape[2] or size[1] < x.shape[3]  # else antialiasing changes nothing and takes twice as long
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=smaller)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        own = self.shape[1:]
        if self.square or (height, width) == own:
            return self.size
        h, w = (max(STEP, round(n * size / full)) for n, size, full in zip((height, width), self.size, own, strict=True))
        return h, w


def _step(side: float) -> int:
    return max(STEP, STEP * round(side / STEP))
