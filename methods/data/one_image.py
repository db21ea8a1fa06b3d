"""One large image as a training set: thousands of crops of it, turned, sheared and shrunk, none of them with a label.

Asano, Rupprecht & Vedaldi 2020, "A critical analysis of self-supervision, or what we can learn from a single image",
arXiv:1904.13132: the early layers of a network can be learned from crops of one rich image. As there, crops are turned and
sheared before any augmentation of the method's own. Here the scale of a crop is log uniform, from one pixel of the image to
one of the crop up to the largest crop that fits, and a crop is taken from the image halved as often as leaves it at least the
crop's resolution.

The crops follow from the image and their size, so that every run of a study gets the same ones.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from methods.data.decode import GREY, Size, convert, reason_of, sides
from methods.data.records import ArrayImages, ImageSet, Source
from search_spaces.domains import UserError

CROPS = 10_000
SIDE = 32
"""Pixels of a crop where no size is asked for."""
TURN = math.radians(35)
SHEAR = math.tan(math.radians(15))
LEAST = 2
"""The image's shorter side, in sides of a crop."""
BLOCK = 2**18
"""Pixels of the crops gathered at a time."""


def load_crops(path: Path, size: Size | None, channels: int | None, memory_limit: int, flip: bool | None) -> Source:
    """``CROPS`` unlabelled crops of the image at ``path``, fewer where they would not fit into ``memory_limit`` bytes.

    Raises:
        UserError: the image cannot be read, is too large to be decoded safely, or too small to take crops from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                count = channels or (1 if opened.mode in GREY else 3)
                bits = opened.mode == "1"
                picture = np.asarray(convert(ImageOps.exif_transpose(opened), count), dtype=np.uint8)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path} must have at most {most} megapixels, but it has more; cut or shrink it") from error
    except Exception as error:  # decoders raise nearly anything on a corrupt file
        raise UserError(f"{path} must be a readable image, but it is not ({reason_of(error)}); save it afresh") from error
    height, width = sides(size or SIDE)
    if min(picture.shape[:2]) < LEAST * max(height, width):
        raise UserError(
            f"an image to crop must be at least {LEAST} crops high and wide, got {picture.shape[1]}x{picture.shape[0]} for "
            f"crops of {width}x{height}; use a larger image or a smaller size"
        )
    crops = max(1, min(CROPS, memory_limit // (height * width * count)))
    images = ArrayImages(cropped(picture.reshape(*picture.shape[:2], count), crops, (height, width)))
    hidden = np.full(crops, -1, dtype=np.int64)
    note = f"{crops:,} crops of {path.name} are images without a label"
    return Source(ImageSet(images, hidden, (), flip=not bits if flip is None else flip), notes=(note,))


def cropped(picture: NDArray[np.uint8], count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [count, h, w, C]: crops of a picture uint8 [H, W, C] that lie inside it."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    turn, shear = (2 * u[:, 0] - 1) * TURN, (2 * u[:, 1] - 1) * SHEAR
    # A crop's axes in the picture: y down, x to the right, x leaning with y.
    cos, sin = turn.cos(), turn.sin()
    right, down = torch.stack([cos, sin], dim=1), torch.stack([shear * cos - sin, shear * sin + cos], dim=1)  # n 2, x and y
    half = (right.abs() * width + down.abs() * height) / 2  # n 2: half the box around a crop, in units of its scale
    tall, wide = picture.shape[:2]
    most = torch.minimum(wide / (2 * half[:, 0]), tall / (2 * half[:, 1]))  # pixels of the picture to one of the crop
    scale = most ** u[:, 2]  # log uniform from 1
    room = torch.tensor([wide, tall], dtype=torch.float64) - 2 * half * scale[:, None]
    centre = half * scale[:, None] + room.clamp_min(0) * u[:, 3:]  # n 2, x and y in pixels
    level = scale.log2().floor().clamp_min(0).long()
    out = np.empty((count, height, width, picture.shape[2]), dtype=np.uint8)
    x = torch.arange(width, dtype=torch.float64) + 0.5 - width / 2
    y = torch.arange(height, dtype=torch.float64) + 0.5 - height / 2
    source = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None]  # 1 C H W
    for number in range(int(level.max()) + 1):
        if number:
            source = F.interpolate(source, [n // 2 for n in source.shape[2:]], mode="bilinear", antialias=True)
        for rows in (level == number).nonzero().squeeze(1).split(max(1, BLOCK // (height * width))):
            step = scale[rows, None, None, None]
            offset = right[rows, None, None] * x[None, None, :, None] + down[rows, None, None] * y[None, :, None, None]
            where = (centre[rows, None, None] + step * offset) / torch.tensor([wide, tall]) * 2 - 1  # m h w 2
            out[rows.numpy()] = _seen(source, where)
    return out


def _seen(source: Tensor, where: Tensor) -> NDArray[np.uint8]:
    """uint8 [m, h, w, C] of a picture [1, C, H, W] at places [m, h, w, 2] in -1 .. 1."""
    m, h, w, _ = where.shape
    # In one column, so that the picture need not be repeated.
    flat = where.reshape(1, m * h, w, 2).to(source.dtype)
    seen = F.grid_sample(source, flat, mode="bilinear", padding_mode="border", align_corners=False)
    found: NDArray[np.uint8] = seen[0].unflatten(1, (m, h)).permute(1, 2, 3, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return found
