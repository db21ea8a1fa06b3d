"""An encoder that puts drawings in the middle and at one size before it looks, see ``framing``.

In training mode it does not: there the augmentation frames, before it moves and bends what the encoder is to see through.

B images, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from methods.parts.augment import to_float
from methods.parts.encoder_base import Encoder, Normalise, Options
from methods.parts.framing import framed


class FramedEncoder(Encoder):
    """In evaluation mode the encoder inside, shown framed drawings; in training mode that encoder."""

    name = "framed"

    def __init__(self, inside: Encoder, paper: float) -> None:
        """
        Args:
            inside: the encoder.
            paper: what is around drawings, 0 or 1.
        """
        super().__init__()
        self.inside, self.paper = inside, paper
        self.dim, self.layers = inside.dim, inside.layers
        if inside.name:
            self.shape = inside.shape
            mean, std = (inside.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
            self.normalise = Normalise(tuple(mean), tuple(std))  # the inner encoder normalises; this encoder's file reads it
        else:
            self.name = ""  # around a class of the user's own, which no file can rebuild

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.inside(self._seen(images))
        return z

    def _seen(self, images: Tensor) -> Tensor:
        return images if self.training else framed(to_float(images), self.paper)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.inside.maps(self._seen(images))

    def options(self) -> Options:
        return {"inside": self.inside.name, **self.inside.options()}

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        return self.inside.parts()
