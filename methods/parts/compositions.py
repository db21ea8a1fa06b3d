"""New classes of drawings out of known ones: two classes in one picture, each in a place and size of its own.

New characters are made of parts that known ones have (Lake, Salakhutdinov & Tenenbaum 2015, "Human-level concept learning
through probabilistic program induction"); their programs recombine strokes, here whole drawings are parts. All images of a
class are laid out alike, each from drawings of its own. Two classes of a task may share a part, in other places.

Shapes: t tasks, N ways, n images of a class, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.batch import RandomStream
from methods.parts.augment import to_float
from methods.parts.strokes import affine, warped

SMALLEST = 0.5
"""The least side of a part, in sides of the picture."""


@dataclass(frozen=True)
class Compositions:
    """What the classes of an episode are made of.

    Attributes:
        composed: bool [t, N], whether a class is composed of itself and its partner.
        partner: int64 [t, N], another class of the task.
        layout: float [t, N, 2, 4], of either part its width, height, and centre along x and y, the picture being -1 .. 1.
    """

    composed: Tensor
    partner: Tensor
    layout: Tensor

    def drawn(self, images: Tensor, label: Tensor, n: int, paper: float) -> Tensor:
        """The same images, those of composed classes with their partner's.

        Args:
            images: uint8 or float in [0, 1], [t, N*n, C, H, W], class by class.
            label: int64 [t, N*n], 0 .. N-1.
            n: images of a class.
            paper: what is around a drawing, 0 or 1.
        Returns:
            float32 [t, N*n, C, H, W] in [0, 1].
        """
        x = to_float(images)
        chosen = self.composed.gather(1, label).flatten().nonzero().squeeze(1)
        if not len(chosen):
            return x
        place = torch.arange(label.shape[1], device=x.device) % n
        task = torch.arange(len(label), device=x.device)[:, None]
        other = x[task, self.partner.gather(1, label) * n + place]
        layout = self.layout[task, label].flatten(0, 1)[chosen]  # M 2 4
        ink = [(side.flatten(0, 1)[chosen] - paper).abs() for side in (x, other)]  # M C H W each
        both = torch.maximum(*(_placed(part, layout[:, k]) for k, part in enumerate(ink)))
        whole = x.flatten(0, 1).index_copy(0, chosen, (paper - both).abs())
        return whole.unflatten(0, label.shape)


def compositions(ways: int, share: float, stream: RandomStream) -> Compositions:
    """Draws what a share of each task's classes is made of; at least 2 ways."""
    size = stream.fork("size").uniform(ways, 2, 2, low=SMALLEST, high=1.0)
    centre = stream.fork("centre").uniform(ways, 2, 2, low=-1.0, high=1.0) * (1 - size)  # the part stays inside
    step = 1 + stream.fork("partner").integers(ways - 1, 1)  # t 1
    partner = (torch.arange(ways, device=step.device) + step) % ways
    return Compositions(stream.fork("composed").chance(share, ways), partner, torch.cat([size, centre], dim=3))


def _placed(ink: Tensor, layout: Tensor) -> Tensor:
    """Ink [M, C, H, W] shrunk and moved to its place, layout [M, 4]; nothing around it."""
    size, centre = layout[:, :2], layout[:, 2:]
    straight = torch.zeros_like(size[:, 0])
    return warped(ink, affine(straight, straight, 1 / size[:, 1], 1 / size[:, 0], -centre / size / 2), outside="zeros")
