"""An encoder that looks at an image and at its mirror image: in evaluation its embedding is the mean of both."""

from __future__ import annotations

from torch import Tensor

from methods.parts.encoder_base import EncoderWrapper


def mirror(images: Tensor) -> Tensor:
    """[B, C, H, W] with left and right exchanged."""
    return images.flip(3)


class MirroredEncoder(EncoderWrapper):
    """In evaluation mode the mean embedding of image and mirror image; in training mode the encoder inside.

    Maps are of the image.
    """

    name = "mirrored"

    def forward(self, images: Tensor) -> Tensor:
        plain: Tensor = self.inside(images)
        return plain if self.training else (plain + self.inside(mirror(images))) / 2
