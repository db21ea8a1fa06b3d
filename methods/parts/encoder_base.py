"""What encoders share: normalisation, an encoder around another, widths and fresh weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.encoder import Encoder, Shape, Statistics
from search_spaces.domains import UserError

SMALLEST = 8
"""Images must be at least this high and wide."""


class Normalise(nn.Module):
    """Images [B, C, H, W], uint8 or float in [0, 1], to float with the data's mean 0 and standard deviation 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """float [B, C, H, W], channels_last, the format in which convolutions are fastest.

        Raises:
            UserError: the images have another number of channels than the encoder was built for.
        """
        if images.dim() != 4 or images.shape[1] != self.mean.shape[1]:
            raise UserError(
                f"this encoder takes images [B, {self.mean.shape[1]}, H, W], got {list(images.shape)}; "
                "build one for images with that many channels"
            )
        top = 1.0 if images.is_floating_point() else 255.0
        x = images.to(self.mean.dtype) * (1 / (top * self.std)) - self.mean / self.std
        if x.shape[1] == 1:  # With one channel both formats are "contiguous": only the strides tell convolutions which to use.
            b, _, h, w = x.shape
            return x.reshape(b, h, w, 1).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)


class EncoderWrapper(Encoder):
    """An encoder that shows another one images in its own way.

    Attributes:
        inside: the other encoder.
    """

    def __init__(self, inside: Encoder) -> None:
        super().__init__()
        self.inside = inside
        self.dim, self.layers = inside.dim, inside.layers
        if inside.name:
            self.shape = inside.shape
            mean, std = (inside.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
            self.normalise = Normalise(tuple(mean), tuple(std))  # the encoder inside normalises; this one's file reads it
        else:
            self.name = ""  # around a class of the user's own, which no file can rebuild

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.inside.maps(images)

    def composed_of(self) -> tuple[Encoder, ...]:
        return (self.inside,)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        return self.inside.parts()


def scaled(width: int, factor: float) -> int:
    """A layer's width times ``factor``, in steps of 8 channels and at least 8; unchanged where the factor is 1."""
    return width if factor == 1 else max(8, 8 * round(width * factor / 8))


def check_size(name: str, shape: Shape) -> None:
    """Raises UserError where the images are too small for any encoder."""
    _, h, w = shape
    if min(h, w) < SMALLEST:
        raise UserError(f"{name} takes images of at least {SMALLEST} x {SMALLEST} pixels, got {h} x {w}; resize them")


def initialise(module: nn.Module) -> None:
    """Fresh convolutions (He et al. 2015, arXiv:1502.01852), in the memory format in which they are fastest."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    module.to(memory_format=torch.channels_last)
