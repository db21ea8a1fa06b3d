"""An encoder that looks at an image several times: its embedding is the mean over small, fixed affine views.

Averaging over views at test time is as old as Krizhevsky, Sutskever & Hinton 2012 (ten crops). The views are the same for every
image, and an image's embedding depends on that image alone, so nothing of other queries is used.

B images, D embedding, V views.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.encoder import Encoder, Options
from methods.parts.augment import to_float
from methods.parts.encoder_base import EncoderWrapper
from methods.parts.strokes import affine, warped

VIEWS: tuple[tuple[float, float, float, float], ...] = (
    (0, 1.0, 0.0, 0.0),
    (6, 1.0, 0.0, 0.0),
    (-6, 1.0, 0.0, 0.0),
    (0, 1.08, 0.0, 0.0),
    (0, 1 / 1.08, 0.0, 0.0),
    (3, 1.0, 0.03, 0.03),
    (-3, 1.0, -0.03, 0.03),
    (3, 1.0, -0.03, -0.03),
    (-3, 1.0, 0.03, -0.03),
)
"""Angle in degrees, scale, and shift along x and y in sides; the first is the image itself. A prefix of them is used."""


class AveragedEncoder(EncoderWrapper):
    """In evaluation mode the mean embedding over V views; in training mode the encoder inside. Maps are of the image."""

    name = "averaged"

    def __init__(self, inside: Encoder, views: int) -> None:
        """
        Args:
            inside: the encoder.
            views: V, 1 to ``len(VIEWS)``.
        """
        super().__init__(inside)
        assert 1 <= views <= len(VIEWS), views
        self.views = views
        angle, scale, *shift = torch.tensor(VIEWS[:views]).unbind(1)
        matrices = affine(angle * math.pi / 180, torch.zeros(views), scale, scale, torch.stack(shift, dim=1))
        self.register_buffer("matrices", matrices, persistent=False)

    matrices: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            plain: Tensor = self.inside(images)
            return plain
        total: Tensor = self.inside(images)
        if self.views > 1:
            x = to_float(images)
            for matrix in self.matrices[1:]:
                total = total + self.inside(warped(x, matrix.expand(x.shape[0], 2, 3)))
        return total / self.views

    def options(self) -> Options:
        return {"test_views": self.views}


def averaged(encoder: Encoder, views: int) -> Encoder:
    """The encoder, or where ``views`` is above 1 one that averages over so many views in evaluation."""
    return encoder if views == 1 else AveragedEncoder(encoder, views)
