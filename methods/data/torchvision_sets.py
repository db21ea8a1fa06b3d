"""torchvision's data sets by name.

Files lie under ``data_root`` (else the environment variable ``LABELWISE_DATA``, else ``~/.cache/labelwise``) as torchvision
lays them out; what is missing is downloaded where that is possible.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from methods.data.arrays import as_images
from methods.data.decode import THREADS, Header, Size, choose_shape, convert
from methods.data.records import ArrayImages, ImageSet, IntArray, Source
from search_spaces.domains import UserError


@dataclass(frozen=True)
class Named:
    """How to build a torchvision data set: class, arguments of its parts, and whether mirror images keep their meaning."""

    kind: str
    train: Mapping[str, Any]
    test: Mapping[str, Any] | None
    unlabelled: Mapping[str, Any] | None = None
    flip: bool = True


def _train_flag(kind: str, flip: bool = True) -> Named:
    return Named(kind, {"train": True}, {"train": False}, flip=flip)


def _split(
    kind: str, train: str = "train", test: str = "test", unlabelled: str | None = None, flip: bool = True, **extra: Any
) -> Named:
    more = None if unlabelled is None else {"split": unlabelled, **extra}
    return Named(kind, {"split": train, **extra}, {"split": test, **extra}, more, flip)


NAMES: dict[str, Named] = {
    "cifar10": _train_flag("CIFAR10"),
    "cifar100": _train_flag("CIFAR100"),
    "mnist": _train_flag("MNIST", flip=False),
    "fashion_mnist": _train_flag("FashionMNIST"),
    "kmnist": _train_flag("KMNIST", flip=False),
    "emnist": Named("EMNIST", {"train": True, "split": "balanced"}, {"train": False, "split": "balanced"}, flip=False),
    "usps": _train_flag("USPS", flip=False),
    "svhn": _split("SVHN", flip=False),
    "stl10": _split("STL10", unlabelled="unlabeled"),
    "omniglot": Named("Omniglot", {"background": True}, {"background": False}, flip=False),
    "eurosat": Named("EuroSAT", {}, None),
    "flowers102": _split("Flowers102"),
    "oxford_pets": _split("OxfordIIITPet", train="trainval"),
    "food101": _split("Food101"),
    "dtd": _split("DTD"),
    "gtsrb": _split("GTSRB", flip=False),
    "caltech101": Named("Caltech101", {}, None),
    "fgvc_aircraft": _split("FGVCAircraft", train="trainval"),
    "stanford_cars": _split("StanfordCars"),
    "country211": _split("Country211"),
    "imagenette": Named("Imagenette", {"split": "train"}, {"split": "val"}),
}


@dataclass(frozen=True)
class _Part:
    images: NDArray[np.uint8]
    label: IntArray
    classes: tuple[str, ...]


def root_of(data_root: str | Path | None) -> Path:
    """Where downloaded data sets lie."""
    return Path(data_root or os.environ.get("LABELWISE_DATA") or Path.home() / ".cache" / "labelwise").expanduser()


def load_named(name: str, size: Size | None, channels: int | None, data_root: str | Path | None) -> Source:
    """A torchvision data set by our name for it.

    Raises:
        UserError: its files are not there and cannot be downloaded.
    """
    recipe, root = NAMES[name], root_of(data_root)
    built = {
        part: _build(name, recipe.kind, root, arguments)
        for part, arguments in (("train", recipe.train), ("test", recipe.test), ("unlabelled", recipe.unlabelled))
        if arguments is not None
    }
    shape = choose_shape(_headers(built["train"]), size, channels)
    parts = {part: _read(data, shape) for part, data in built.items()}
    train = parts["train"]
    images, label = train.images, train.label
    if "unlabelled" in parts:
        images = np.concatenate([images, parts["unlabelled"].images])
        label = np.concatenate([label, np.full(len(parts["unlabelled"].images), -1)])
    classes = train.classes or tuple(map(str, range(int(label.max()) + 1)))
    whole = _with_alphabets(ImageSet(ArrayImages(images), label, classes, flip=recipe.flip), name)
    if "test" not in parts:
        return Source(whole)
    test = parts["test"]
    tested = ImageSet(ArrayImages(test.images), test.label, test.classes or classes, flip=recipe.flip)
    return Source(whole, _with_alphabets(tested, name))


def _with_alphabets(data: ImageSet, name: str) -> ImageSet:
    if name != "omniglot":
        return data
    alphabet = [c.split("/")[0] for c in data.classes]
    groups = tuple(sorted(set(alphabet)))
    of_class = np.array([groups.index(a) for a in alphabet], dtype=np.int64)
    return dataclasses.replace(data, group=of_class[data.label], groups=groups)


def _build(name: str, kind: str, root: Path, arguments: Mapping[str, Any]) -> Any:
    maker = getattr(importlib.import_module("torchvision.datasets"), kind)
    try:
        return maker(str(root), **arguments, download=False)
    except (RuntimeError, OSError):
        pass  # the files are not there yet: fetch them
    try:
        root.mkdir(parents=True, exist_ok=True)
        return maker(str(root), **arguments, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} must lie in {root} or be downloadable, but it is neither ({reason}); on a machine with internet run"
            f" torchvision.datasets.{kind}({str(root)!r}, download=True) and copy the folder, or set LABELWISE_DATA to it"
        ) from error


def _array(data: Any) -> NDArray[np.uint8] | None:
    """uint8 [N, H, W, C] where torchvision holds the whole set in memory."""
    held = getattr(data, "data", None)
    return None if held is None or isinstance(held, list) else as_images(np.asarray(held), "torchvision's images").array


def _headers(data: Any, n: int = 256) -> list[Header]:
    held = _array(data)
    if held is not None:
        return [Header(held.shape[2], held.shape[1], "L" if held.shape[3] == 1 else "RGB")]
    images = [data[int(i)][0] for i in np.linspace(0, len(data) - 1, min(n, len(data))).round()]
    return [Header(image.width, image.height, image.mode) for image in images]


def _read(data: Any, shape: tuple[int, int, int]) -> _Part:
    channels, height, width = shape
    held = _array(data)
    if held is not None:
        found = data.targets if hasattr(data, "targets") else data.labels
        images, label = (
            as_images(held, "torchvision's images", (height, width), channels).array,
            np.asarray(found, dtype=np.int64),
        )
    else:

        def one(i: int) -> tuple[NDArray[np.uint8], int]:
            image, target = data[i]
            fitted = ImageOps.fit(convert(image, channels), (width, height), Image.Resampling.BILINEAR)
            return np.asarray(fitted).reshape(height, width, channels), int(target)

        with ThreadPoolExecutor(THREADS) as pool:
            pairs = list(pool.map(one, range(len(data))))
        images, label = np.stack([image for image, _ in pairs]), np.array([k for _, k in pairs], dtype=np.int64)
    names = next((v for a in ("classes", "categories", "_characters") if (v := getattr(data, a, None))), ())
    return _Part(images, label, tuple(str(n[0] if isinstance(n, tuple) else n) for n in names))
