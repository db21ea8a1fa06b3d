"""Arrays and ``.npz`` files as a ``Source``.

Images: uint8 (or whole numbers 0 .. 255) or floats in [0, 1], as [N, H, W, C], [N, C, H, W] or [N, H, W] with C = 1 or 3;
where both readings fit, channels come last. Labels: whole numbers or text, [N]; -1 or blank text means unlabelled. A file
holds ``images`` and ``labels``, and where it has them ``test_images`` and ``test_labels``, ``groups``, ``captions``,
``classes`` (names), ``split`` (train, val, validation or test, kept as it is), ``fold`` (whole numbers) and further labels
under ``labels_NAME``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from methods.data.captions import tell_classes
from methods.data.columns import by_parts, part_of
from methods.data.decode import Size, sides
from methods.data.records import ArrayImages, ImageSet, IntArray, LabelColumn, Source
from search_spaces.domains import UserError

KEYS = ("images", "labels", "test_images", "test_labels", "groups", "captions", "classes", "split", "fold")
FURTHER = "labels_"
"""Before the name of a further label column."""


def load_npz(path: Path, size: Size | None, channels: int | None, flip: bool | None) -> Source:
    """An ``.npz`` file; see the module's docstring.

    Raises:
        UserError: unreadable, keys missing, or arrays of a wrong kind.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key in KEYS or key.startswith(FURTHER)}
            found = archive.files
    except FileNotFoundError as error:
        raise UserError(f"{path} must exist, but it does not; check the path") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} must be a plain .npz of arrays, but it cannot be read ({error}); write it with numpy.savez"
        ) from error
    if "images" not in arrays:
        raise UserError(
            f"{path} must have the key images, got {', '.join(found) or 'nothing'}; write it with numpy.savez(images=...)"
        )
    return from_arrays(arrays, str(path), size, channels, flip)


def from_arrays(
    arrays: Mapping[str, Any], where: str, size: Size | None = None, channels: int | None = None, flip: bool | None = None
) -> Source:
    """Arrays under the keys of the module's docstring; without ``labels`` everything is unlabelled."""
    names = tuple(str(name) for name in np.asarray(arrays["classes"]).tolist()) if "classes" in arrays else None
    images = as_images(arrays["images"], f"images of {where}", size, channels)
    label, classes = as_labels(arrays.get("labels"), len(images), f"labels of {where}", names)
    group, groups = as_labels(arrays["groups"], len(images), f"groups of {where}", None) if "groups" in arrays else (None, ())
    captions = tuple(str(text) for text in np.asarray(arrays["captions"]).tolist()) if "captions" in arrays else ()
    if captions and len(captions) != len(images):
        raise UserError(
            f"captions of {where} must be one for each of {len(images)} images, got {len(captions)}; check the arrays"
        )
    further = [
        (key.removeprefix(FURTHER), as_labels(arrays[key], len(images), f"{key} of {where}", None))
        for key in arrays
        if key.startswith(FURTHER)
    ]
    fold = as_folds(arrays["fold"], len(images), f"fold of {where}") if "fold" in arrays else None
    train = ImageSet(
        images=images,
        label=label,
        classes=classes,
        group=group,
        groups=groups,
        captions=captions,
        flip=True if flip is None else flip,
        caption_labels=tell_classes(captions, label, classes),
        targets=tuple(LabelColumn(name, values, column) for name, (column, values) in further),
        fold=fold,
    )
    if "split" in arrays:
        return _divided(train, arrays, where)
    if "test_images" not in arrays:
        return Source(train)
    tested = as_images(arrays["test_images"], f"test_images of {where}", images.shape[1:] if size else None, channels)
    label, own = as_labels(arrays.get("test_labels"), len(tested), f"test_labels of {where}", names)
    known = {name: k for k, name in enumerate(classes)}
    if set(own) <= set(known) and own:
        label = np.array([known[name] for name in own] + [-1], dtype=np.int64)[label]
        own = classes
    return Source(train, ImageSet(images=tested, label=label, classes=own, flip=train.flip))


def _divided(data: ImageSet, arrays: Mapping[str, Any], where: str) -> Source:
    """The images by the ``split`` of each."""
    if "test_images" in arrays:
        raise UserError(f"{where} must have either split or test_images, got both; leave one of them out")
    values = np.asarray(arrays["split"]).astype(str)
    if values.shape != (len(data),):
        raise UserError(
            f"split of {where} must be one for each of {len(data)} images, got shape {values.shape}; check the arrays"
        )
    parts = [
        part_of(value.strip(), bool(label >= 0), f"row {row} of {where}")
        for row, (value, label) in enumerate(zip(values.tolist(), data.label, strict=True))
    ]
    return by_parts(data, parts, kept=True)


def as_folds(value: Any, n: int, where: str) -> IntArray:
    """int64 [N] folds from 0, -1 for none. Raises UserError where they are anything else."""
    array = np.asarray(value)
    if array.shape != (n,):
        raise UserError(f"{where} must be one for each of {n} images, got shape {array.shape}; check the arrays")
    if array.dtype.kind not in "iu" or (n and array.min() < -1):
        found = array.min() if array.dtype.kind in "iu" else array.dtype
        raise UserError(f"{where} must be whole numbers from 0, -1 for none, got {found}; number the folds")
    return array.astype(np.int64)


def as_images(value: Any, where: str, size: Size | None = None, channels: int | None = None) -> ArrayImages:
    """Images of any accepted kind as uint8 [N, H, W, C], resized (shorter side, then centre) where a size is given."""
    array = np.asarray(value)
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise UserError(
            f"{where} must be [N,H,W], [N,H,W,C] or [N,C,H,W] with 1 or 3 channels, got {np.shape(value)}; reshape them"
        )
    if not len(array):
        raise UserError(f"{where} must hold at least one image, got none; check the data")
    array = _as_uint8(array, where)
    if channels == 1 and array.shape[3] == 3:
        grey = array @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        array = grey.round().astype(np.uint8)[..., None]
    elif channels == 3 and array.shape[3] == 1:
        array = np.repeat(array, 3, axis=3)
    if size is not None:
        array = resize(array, sides(size))
    return ArrayImages(np.ascontiguousarray(array))


def _as_uint8(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{where} must be numbers, got {array.dtype}; store them as uint8")
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{where} must lie in [0, 1] where they are floats, got {low:g} to {high:g}; rescale them or use uint8"
            )
        return (array * 255).round().astype(np.uint8)
    if low < 0 or high > 255:
        raise UserError(
            f"{where} must lie in 0 .. 255 where they are whole numbers, got {low} to {high}; rescale them to uint8"
        )
    return array.astype(np.uint8)


def resize(array: NDArray[np.uint8], to: tuple[int, int], chunk: int = 4096) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C] to [N, h, w, C]: scaled until it covers the new size (antialiased), the centre cropped."""
    n, height, width, channels = array.shape
    h, w = to
    if (height, width) == to:
        return array
    scale = max(h / height, w / width)
    covering = max(h, round(height * scale)), max(w, round(width * scale))
    top, left = (covering[0] - h) // 2, (covering[1] - w) // 2
    out = np.empty((n, h, w, channels), dtype=np.uint8)
    for start in range(0, n, chunk):
        x = torch.from_numpy(np.ascontiguousarray(array[start : start + chunk])).permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, size=covering, mode="bilinear", antialias=True, align_corners=False)
        out[start : start + chunk] = (
            x[:, :, top : top + h, left : left + w].round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        )
    return out


def as_labels(value: Any, n: int, where: str, names: tuple[str, ...] | None) -> tuple[IntArray, tuple[str, ...]]:
    """int64 [N] labels that count into class names; -1 where unlabelled."""
    if value is None:
        return np.full(n, -1, dtype=np.int64), names or ()
    array = np.asarray(value)
    if array.shape != (n,):
        raise UserError(f"{where} must be one for each of {n} images, got shape {array.shape}; check the arrays")
    if array.dtype.kind in "US":
        text = np.char.strip(array.astype(str))
        found = tuple(sorted(set(text.tolist()) - {""}))
        number = {name: k for k, name in enumerate(names or found)}
        unknown = [name for name in found if name not in number]
        if unknown:
            raise UserError(f"{where} must be among the classes, got {unknown[0]!r}; add it to classes")
        return np.array([number.get(name, -1) for name in text.tolist()], dtype=np.int64), tuple(number)
    if array.dtype.kind not in "iufb" or not np.all(array == np.floor(array)):
        raise UserError(f"{where} must be whole numbers or text, got {array.dtype}; -1 or blank text means unlabelled")
    label = array.astype(np.int64)
    if label.min() < -1:
        raise UserError(f"{where} must be at least -1 (unlabelled), got {label.min()}; renumber them")
    if names is not None:
        if label.max() >= len(names):
            raise UserError(f"{where} must count into {len(names)} classes, got {label.max()}; add names to classes")
        return label, names
    values = np.unique(label[label >= 0])
    return np.where(label >= 0, np.searchsorted(values, label), -1), tuple(str(v) for v in values)
