"""Patches: cutting them out of a batch of images, shuffling them, and the permutations worth telling apart.

B images, P patches each, C channels, H, W size, s patch side in pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from methods.batch import RandomStream
from methods.contracts import TrainingError
from methods.parts.encoders import Encoder, TokenEncoder
from methods.parts.modes import statistics_moved, still_statistics

SMALLEST = 4
"""The least side of a patch in pixels: less than that shows nothing."""

WHOLE = 8
"""Every so many steps the encoder of a patch task sees whole images."""

FOLLOW = 0.2
"""How far BatchNorm's running statistics move then; its usual tenth would lag behind, with fewer passes."""


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Square patches [B, P, C, s, s] at rows ``top`` and columns ``left``, int64 [B, P], of images [B, C, H, W]."""
    offset = torch.arange(side, device=images.device)
    image = torch.arange(len(images), device=images.device)[:, None, None, None]
    rows = (top[..., None] + offset)[..., :, None]  # B P s 1
    columns = (left[..., None] + offset)[..., None, :]  # B P 1 s
    return images[image, :, rows, columns].permute(0, 1, 4, 2, 3)


def embedded_patches(encoder: Encoder, patches: Tensor, images: Tensor, number: int) -> Tensor:
    """Embeddings [BP, D] of patches [BP, C, s, s], for encoders that are used on whole images afterwards.

    BatchNorm would keep the statistics of patches, whose borders are a large part of them: it keeps those of whole images
    instead, seen without gradient at some of the steps; those of the first few passes are averaged.

    Args:
        encoder: in training mode.
        patches: a training step's.
        images: uint8 [B, C, H, W], the whole images as they are.
        number: of the step.
    """
    if number % WHOLE == 0 and any(isinstance(layer, _BatchNorm) for layer in encoder.modules()):
        with torch.no_grad(), statistics_moved(encoder, max(FOLLOW, 1 / (number // WHOLE + 1))):
            encoder(images)
    with still_statistics(encoder):
        z: Tensor = encoder(patches)
    return z


def patch_side(shape: tuple[int, int, int], encoder: Encoder, side: float, method: str) -> int:
    """A patch's side in whole pixels that the encoder can take: a multiple of its own patches where it is a transformer.

    Args:
        shape: (C, H, W) of the images.
        encoder: what the patches go through.
        side: wanted, in pixels; rounded to the nearest, down where the encoder has patches.
        method: named in errors.
    Raises:
        TrainingError: the patch would be too small to show anything.
    """
    unit = next((inner.patch for inner in encoder.modules() if isinstance(inner, TokenEncoder)), 1)
    pixels = round(side) // unit * unit
    if pixels < SMALLEST:
        raise TrainingError(
            f"{method}: patches must be at least {SMALLEST} pixels wide, got {pixels} from images of {shape[1]} x {shape[2]}; "
            "use larger images or a coarser grid"
        )
    return pixels


def jittered_grid(images: Tensor, cells: int, side: int, stream: RandomStream) -> Tensor:
    """One patch from each of ``cells`` x ``cells`` cells, row by row, at a random place inside its cell.

    The gaps so left keep the patches' borders from giving their order away.

    Args:
        images: [B, C, H, W].
        cells: cells along a side.
        side: s, at most the cell's side.
        stream: of the global batch.
    Returns:
        [B, cells^2, C, s, s]
    """
    h, w = images.shape[2] // cells, images.shape[3] // cells
    cell = torch.arange(cells, device=images.device)
    u = stream.uniform(2, cells * cells)  # B 2 P
    top = cell.repeat_interleave(cells) * h + (u[:, 0] * (h - side + 1)).long()
    left = cell.repeat(cells) * w + (u[:, 1] * (w - side + 1)).long()
    return cut(images, top, left, side)


def overlapping_grid(images: Tensor, side: int, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """All patches [B, P, C, s, s] on a grid of the given stride, row by row, and the grid's (rows, columns)."""
    rows, columns = ((n - side) // stride + 1 for n in images.shape[2:])
    top = (torch.arange(rows, device=images.device) * stride).repeat_interleave(columns)
    left = (torch.arange(columns, device=images.device) * stride).repeat(rows)
    return cut(images, top.expand(len(images), -1), left.expand(len(images), -1), side), (rows, columns)


def standardised(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Every patch brought to the same mean and standard deviation per channel, so that brightness tells nothing of its place.

    Args:
        patches: [B, P, C, s, s].
        mean, std: [C], what every patch's channels have afterwards (the data's own).
    """
    x = patches.float()
    sd, m = torch.std_mean(x, dim=(3, 4), keepdim=True, correction=0)
    return (x - m) / (sd + 0.01) * std.view(-1, 1, 1) + mean.view(-1, 1, 1)


def shuffled(patches: Tensor, order: Tensor) -> Tensor:
    """Patches [B, P, ...] in each image's own order [B, P]: place j shows patch order[j]."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], order]


def mosaic(patches: Tensor, border: int = 0) -> Tensor:
    """Patches [B, c^2, C, s, s] as images [B, C, c S, c S], row by row; each with a white border, S = s + 2 ``border``."""
    patches = F.pad(patches, (border,) * 4, value=1.0)
    b, p, c, s, _ = patches.shape
    cells = math.isqrt(p)
    return patches.reshape(b, cells, cells, c, s, s).permute(0, 3, 1, 4, 2, 5).reshape(b, c, cells * s, cells * s)


@lru_cache(maxsize=16)
def far_permutations(items: int, count: int) -> Tensor:
    """int64 [count, items]: permutations chosen one by one, each with the greatest mean Hamming distance to those before it.

    Noroozi & Favaro 2016, algorithm 1, started from the identity, ties broken by the greater minimum distance, then by order.

    Raises:
        TrainingError: there are not that many permutations.
    """
    every = np.array(list(permutations(range(items))), dtype=np.int8)  # n! items
    if count > len(every):
        raise TrainingError(f"{items} patches have only {len(every)} permutations, got {count}; lower permutations")
    total = np.zeros(len(every), dtype=np.int64)
    least = np.full(len(every), items, dtype=np.int64)
    taken = np.zeros(len(every), dtype=bool)
    chosen = [0]
    while len(chosen) < count:
        newest = chosen[-1]
        taken[newest] = True
        distance = (every != every[newest]).sum(axis=1)
        total += distance
        least = np.minimum(least, distance)
        chosen.append(int(np.argmax(np.where(taken, -1, total * (items + 1) + least))))
    return torch.from_numpy(every[chosen].astype(np.int64))
