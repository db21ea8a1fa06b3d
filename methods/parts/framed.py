"""An encoder that puts drawings in the middle and at one size before it looks, see ``framing``.

In training mode it does not: there the augmentation frames, before it moves and bends what the encoder is to see through.

B images, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from methods.encoder import Encoder
from methods.parts.augment import to_float
from methods.parts.encoder_base import EncoderWrapper
from methods.parts.framing import framed


class FramedEncoder(EncoderWrapper):
    """In evaluation mode the encoder inside, shown framed drawings; in training mode that encoder."""

    name = "framed"

    def __init__(self, inside: Encoder, paper: float) -> None:
        """
        Args:
            inside: the encoder.
            paper: what is around drawings, 0 or 1.
        """
        super().__init__(inside)
        self.paper = paper

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.inside(self._seen(images))
        return z

    def _seen(self, images: Tensor) -> Tensor:
        # What has not four dimensions the encoder inside refuses, in words.
        return images if self.training or images.dim() != 4 else framed(to_float(images), self.paper)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.inside.maps(self._seen(images))


def frame_in_training(model: nn.Module) -> None:
    """Lets the framed encoders in a model that is in training mode frame too: for trainings whose augmentation does not."""
    for module in model.modules():
        if isinstance(module, FramedEncoder):
            module.training = False  # of itself alone: what is inside stays in training mode
