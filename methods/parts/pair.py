"""Two encoders side by side, each on its own part of the image (co-training's two views)."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.encoder import Encoder, Options, Statistics
from methods.parts.augment import GREY, to_float
from methods.parts.encoder_base import Normalise
from search_spaces.domains import UserError

VIEWS = ("halves", "colour")

CHANNELS = "channels"
"""Every other channel, and those between: of rows of features, which have no halves that differ in kind."""


class PairEncoder(Encoder):
    """Embeds each view of an image with its own encoder; the embeddings stand side by side, D = D1 + D2.

    Views: ``halves``, the left and the right half; ``colour``, luminance and chrominance; ``channels``, every other channel
    and those between. What an encoder must not see is filled with the data's mean.
    """

    name = "pair"

    def __init__(self, first: Encoder, second: Encoder, mean: Statistics, std: Statistics, views: str) -> None:
        """
        Args:
            first, second: encoders of one architecture.
            mean, std: of the data, per channel in [0, 1].
            views: one of VIEWS, or CHANNELS.
        Raises:
            UserError: unknown views, or colour views of images without 3 channels.
        """
        super().__init__()
        if views not in (*VIEWS, CHANNELS):
            raise UserError(f"the views of a pair of encoders are one of {', '.join(VIEWS)}, got {views!r}")
        if views == "colour" and first.shape[0] != 3:
            raise UserError(f"views by colour need images of 3 channels, got {first.shape[0]}; use halves")
        self.first, self.second, self.views = first, second, views
        self.normalise = Normalise(mean, std)  # not used for images: its mean fills, and the encoder's file reads it
        self.shape = first.shape
        self.dim = first.dim + second.dim
        self.layers = (*(f"first.{name}" for name in first.layers), *(f"second.{name}" for name in second.layers))

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both views [B, C, H, W], float in about [0, 1], of images [B, C, H, W]."""
        x = to_float(images)
        mean = self.normalise.mean
        if self.views == "colour":
            weights = torch.tensor(GREY, device=x.device).view(1, 3, 1, 1)
            luminance = (x * weights).sum(1, keepdim=True)  # B 1 H W
            return luminance.expand_as(x), x - luminance + (mean * weights).sum()
        if self.views == CHANNELS:
            even = self._even(x.shape[1], x.device).view(1, -1, 1, 1)
            return torch.where(even, x, mean), torch.where(even, mean, x)
        left = torch.arange(x.shape[3], device=x.device) < x.shape[3] // 2  # W
        return torch.where(left, x, mean), torch.where(left, mean, x)

    @staticmethod
    def _even(channels: int, device: torch.device) -> Tensor:
        return torch.arange(channels, device=device) % 2 == 0

    def on_channels(self, weight: Tensor) -> Tensor:
        """[K, C]: a layer's weights [K, 2C] on the pair of embeddings, where both encoders pass the channels that they see.

        Only of views by ``channels`` of data with a mean of 0.
        """
        assert self.views == CHANNELS
        one, two = weight.chunk(2, dim=1)
        return torch.where(self._even(one.shape[1], weight.device), one, two)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, D1] and [B, D2] of the two views."""
        one, two = self.split(images)
        return self.first(one), self.second(two)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.both(images), dim=1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        one, two = self.split(images)
        found = {f"first.{name}": x for name, x in self.first.maps(one).items()}
        return found | {f"second.{name}": x for name, x in self.second.maps(two).items()}

    def options(self) -> Options:
        return {"views": self.views}

    def composed_of(self) -> tuple[Encoder, ...]:
        return self.first, self.second
