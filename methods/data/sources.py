"""From a data specification to a ``Source``: one function, ``load``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from methods.data.arrays import as_images, from_arrays, load_npz, resize
from methods.data.decode import OnBadImage, Size, is_image, sides
from methods.data.folders import load_files
from methods.data.glyphs import load_glyphs
from methods.data.one_image import load_crops
from methods.data.records import ArrayImages, ImageSet, Source
from methods.data.torchvision_sets import NAMES, load_named
from methods.data.views import join
from search_spaces.domains import UserError, nearest

EMBEDDED = ("digits", "glyphs")
FILES = (".zip", ".npz")
MEMORY_LIMIT = 4 * 2**30


def names_data(name: str) -> bool:
    """Whether a word by itself stands for images: an embedded or torchvision name, a folder, or a file that holds images."""
    path = Path(name).expanduser()
    held = path.suffix.lower() in FILES or is_image(path.name)
    return name in (*EMBEDDED, *NAMES) or path.is_dir() or (held and path.is_file())


def load(
    spec: Any,
    *,
    size: Size | None = None,
    channels: int | None = None,
    on_bad_image: OnBadImage = "refuse",
    memory_limit: int = MEMORY_LIMIT,
    data_root: str | Path | None = None,
    flip: bool | None = None,
) -> Source:
    """Loads a data specification.

    Args:
        spec: ``digits``, ``glyphs``, a torchvision name (``cifar10``, ...), the path of a folder, ``.zip`` or ``.npz``, that of
            one large image, whose crops are images without a label, a tuple of arrays (images, labels), a ``Source`` or
            ``ImageSet`` (as it is), or a list of these, put together.
        size: side, or height and width, that every image gets; else the source's own (see ``decode`` for files).
        channels: 1 or 3 to ask for grey or RGB; a test set is loaded with its training set's shape.
        on_bad_image: ``refuse`` raises on a corrupt image, ``skip`` leaves it out and says so in ``Source.notes``.
        memory_limit: bytes of decoded images beyond which files are decoded while training instead.
        data_root: where torchvision's files lie; else LABELWISE_DATA, else ``~/.cache/labelwise``.
        flip: whether a mirrored image keeps its meaning; else known for named sets, False for 1-bit images, True otherwise.
    Raises:
        UserError: one line with rule, value and remedy for everything that can be wrong with the data.
    """
    if on_bad_image not in ("refuse", "skip"):
        raise UserError(f"on_bad_image must be refuse or skip, got {on_bad_image!r}; refuse is the default")
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 or 3, got {channels!r}; leave it out to take what the images have")
    if size is not None:
        sides(size)
    options = _Options(on_bad_image, memory_limit, data_root, flip)
    source = _load_list(spec, size, channels, options) if isinstance(spec, list) else _load_one(spec, size, channels, options)
    return source if flip is None else _with_flip(source, flip)


@dataclass(frozen=True)
class _Options:
    on_bad_image: OnBadImage
    memory_limit: int
    data_root: str | Path | None
    flip: bool | None


def _load_one(spec: Any, size: Size | None, channels: int | None, options: _Options) -> Source:
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, ImageSet):
        return Source(spec)
    if isinstance(spec, tuple):
        if len(spec) != 2:
            raise UserError(f"arrays come as (images, labels), got a tuple of {len(spec)}; hand over two arrays")
        return from_arrays({"images": spec[0], "labels": spec[1]}, "the arrays", size, channels, options.flip)
    if not isinstance(spec, str | os.PathLike):
        raise UserError(
            f"data must be a name, a path, arrays or a list of these, got {type(spec).__name__}; digits is built in"
        )
    name = os.fspath(spec)
    if name == "digits":
        return load_digits(size, channels)
    if name == "glyphs":
        height, width = sides(size or 28)
        if height != width:
            raise UserError(f"glyphs are square, got the size {width}x{height}; give one side")
        return _with_channels(load_glyphs(height), channels)
    if name in NAMES:
        return load_named(name, size, channels, options.data_root)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".npz":
        return load_npz(path, size, channels, options.flip)
    if not path.exists() and "/" not in name and not path.suffix:
        known = (*EMBEDDED, *NAMES)
        raise UserError(f"data must be a path that exists or a known name, got {name}{nearest(name, known)}")
    if path.is_file() and is_image(path.name):
        return load_crops(path, size, channels, options.memory_limit, options.flip)
    return load_files(path, size, channels, options.on_bad_image, options.memory_limit, options.flip)


def load_digits(size: Size | None = None, channels: int | None = None) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 in 17 greys, enlarged to 16 x 16 unless a size is given."""
    from sklearn.datasets import load_digits as read

    found = read()
    small = (found.images / 16 * 255).round().astype(np.uint8)[..., None]
    images = as_images(resize(small, sides(size or 16)), "digits", None, channels)
    return Source(ImageSet(images, found.target.astype(np.int64), tuple(str(k) for k in range(10)), flip=False))


def _load_list(specs: Sequence[Any], size: Size | None, channels: int | None, options: _Options) -> Source:
    """The sources one after the other; the first decides the shape, so that all agree."""
    if not specs:
        raise UserError("a list of data must name at least one source, got none; add a path or a name")
    sources = [_load_one(specs[0], size, channels, options)]
    shape = sources[0].train.images.shape
    sources += [_load_one(spec, shape[1:], shape[0], options) for spec in specs[1:]]
    tests = [source.test for source in sources if source.test is not None]
    notes = tuple(note for source in sources for note in source.notes)
    trained = {name for source in sources for name in source.train.classes if name not in source.validation}
    apart = tuple(dict.fromkeys(n for source in sources for n in source.validation if n not in trained))
    return Source(join([source.train for source in sources]), join(tests) if tests else None, notes, apart)


def _with_channels(source: Source, channels: int | None) -> Source:
    assert isinstance(source.train.images, ArrayImages)
    images = as_images(source.train.images.array, "images", None, channels)
    return dataclasses.replace(source, train=dataclasses.replace(source.train, images=images))


def _with_flip(source: Source, flip: bool) -> Source:
    test = source.test and dataclasses.replace(source.test, flip=flip)
    return dataclasses.replace(source, train=dataclasses.replace(source.train, flip=flip), test=test)
