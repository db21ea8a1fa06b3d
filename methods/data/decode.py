"""Image files to uint8 arrays: reading folders and zips in place, one size for all, many threads.

Rules, the same for every source of files:

- **Size.** ``size`` given: the shorter side is resized to it (antialiased) and the centre cropped. Not given: images that all
  have one size of at most 64 x 64 stay as they are; otherwise the side is the median shorter side, rounded down to a
  multiple of 8 and at most 64.
- **Channels.** One if every file is grey (1-bit, 8-bit or 16-bit grey), otherwise RGB. Transparency is laid on white,
  EXIF orientation is applied.
- Zips are read in place and never extracted; a member that claims more than 256 MiB counts as a corrupt image.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from methods.data.records import Images
from search_spaces.domains import UserError

Size = int | tuple[int, int]
OnBadImage = Literal["refuse", "skip"]

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm"))
LARGEST_DEFAULT = 64
LARGEST_FILE = 256 * 2**20
GREY = frozenset(("1", "L", "LA", "I;16", "I;16B", "I;16L", "I"))
THREADS = min(8, os.cpu_count() or 1)
CHUNK = 64


Item = TypeVar("Item")
R = TypeVar("R")


class Files(ABC):
    """Named files in a folder or a zip, readable from many threads; names are relative, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """All files, sorted, without system litter (``__MACOSX``, names that start with a dot, ``Thumbs.db``)."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    def header(self, name: str) -> bytes | str:
        """Something ``Image.open`` takes to read the header alone."""
        return self.read(name)


class FolderFiles(Files):
    def names(self) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()

        def refuse(error: OSError) -> None:
            raise UserError(
                f"every folder must be readable, but {error.filename} is not ({error.strerror}); change its permissions"
            )

        for folder, children, files in os.walk(self.path, followlinks=True, onerror=refuse):
            real = os.path.realpath(folder)
            if real in seen:
                children.clear()
                continue
            seen.add(real)
            base = Path(folder).relative_to(self.path).as_posix()
            found += [name if base == "." else f"{base}/{name}" for name in files]
        return sorted(name for name in found if not _litter(name))

    def read(self, name: str) -> bytes:
        path = self.path / name
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("larger than 256 MiB")
        return path.read_bytes()

    def header(self, name: str) -> bytes | str:
        return str(self.path / name)


class ZipFiles(Files):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._zip: zipfile.ZipFile | None = None

    def _open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._zip is None:
                try:
                    self._zip = zipfile.ZipFile(self.path)
                except (zipfile.BadZipFile, OSError) as error:
                    raise UserError(
                        f"{self.path} must be a readable zip archive, but it is not ({error}); make it afresh"
                    ) from error
            return self._zip

    def names(self) -> list[str]:
        members = [m for m in self._open().infolist() if not m.is_dir() and not _litter(m.filename)]
        if any(m.flag_bits & 1 for m in members):
            raise UserError(f"{self.path} must not be encrypted; make it afresh without a password")
        return sorted({m.filename for m in members})

    def read(self, name: str) -> bytes:
        archive = self._open()
        if archive.getinfo(name).file_size > LARGEST_FILE:
            raise ValueError("larger than 256 MiB")
        return archive.read(name)

    def __reduce__(self) -> tuple[type[ZipFiles], tuple[Path]]:
        return ZipFiles, (self.path,)


def _litter(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in (".", "..")]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return hidden or not parts or parts[-1] in ("Thumbs.db", "desktop.ini")


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before it is decoded."""

    width: int
    height: int
    mode: str


@dataclass(frozen=True)
class Bad:
    """An image that cannot be read, and why."""

    name: str
    reason: str


def scan(files: Files, names: Sequence[str]) -> list[Header | Bad]:
    """The headers of many files."""
    Image.preinit()

    def one(name: str) -> Header | Bad:
        try:
            source = files.header(name)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return Header(image.width, image.height, image.mode)
        except Exception as error:  # decoders raise nearly anything on a corrupt file; every case is reported with its name
            return Bad(name, reason_of(error))

    return _threaded(one, names)


def choose_shape(headers: Sequence[Header], size: Size | None = None, channels: int | None = None) -> tuple[int, int, int]:
    """(C, H, W) by the rules of the module's docstring."""
    assert headers
    if channels is None:
        channels = 1 if all(h.mode in GREY for h in headers) else 3
    if size is not None:
        return (channels, *sides(size))
    sizes = {(h.height, h.width) for h in headers}
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_DEFAULT:
        return (channels, *sizes.pop())
    median = int(np.median([min(h.height, h.width) for h in headers]))
    side = min(LARGEST_DEFAULT, max(8, median // 8 * 8))
    return channels, side, side


def sides(size: Size) -> tuple[int, int]:
    """(H, W) of a size given as one side or two.

    Raises:
        UserError: a side is not a whole number from 4 to 1024.
    """
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, int) or not 4 <= side <= 1024:
            raise UserError(f"size must be a whole number from 4 to 1024 pixels, got {side!r}; 32 is a good start")
    return height, width


def decode(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, C] of one encoded image. Raises whatever PIL raises on a corrupt one."""
    with Image.open(io.BytesIO(data)) as opened:
        return _fitted(opened, shape)


def _fitted(opened: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = shape
    if opened.format == "JPEG" and min(opened.size) > 4 * max(width, height):
        opened.draft(None, (2 * width, 2 * height))
    opened.load()
    turned = ImageOps.exif_transpose(opened) if "exif" in opened.info or opened.format == "TIFF" else opened
    image = convert(turned, channels)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def convert(image: Image.Image, channels: int) -> Image.Image:
    """The image as 8-bit grey or RGB: transparency on white, 16 bits scaled down."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def decode_all(files: Files, names: Sequence[str], shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], list[Header | Bad]]:
    """uint8 [N, H, W, C] of all files with their headers; rows of files that cannot be read are zero."""
    channels, height, width = shape
    out = np.zeros((len(names), height, width, channels), dtype=np.uint8)

    def one(position: int) -> Header | Bad:
        try:
            with Image.open(io.BytesIO(files.read(names[position]))) as image:
                header = Header(image.width, image.height, image.mode)
                out[position] = _fitted(image, shape)
        except Exception as error:  # as in scan
            return Bad(names[position], reason_of(error))
        return header

    return out, _threaded(one, range(len(names)))


def read_all(
    files: Files, names: Sequence[str], size: Size | None, channels: int | None, memory_limit: int
) -> tuple[NDArray[np.uint8] | None, tuple[int, int, int], list[Header | Bad]]:
    """All files decoded, their common (C, H, W), and their headers; None for the array beyond ``memory_limit`` bytes.

    Mostly all files are of one kind. So the first one that can be read tells the shape, and only where the others
    disagree is everything decoded again.
    """
    headers: list[Header | Bad] = []
    for name in names:
        headers += scan(files, [name])
        if isinstance(headers[-1], Header):
            break
    guess = _shape(headers, size, channels)
    if _bytes(len(names), guess) > memory_limit or (size is None and max(guess[1:]) >= LARGEST_DEFAULT):
        headers = scan(files, names)
    else:
        array, headers = decode_all(files, names, guess)
        if _shape(headers, size, channels) == guess:
            return array, guess, headers
    shape = _shape(headers, size, channels)
    if _bytes(len(names), shape) > memory_limit:
        return None, shape, headers
    array, headers = decode_all(files, names, shape)
    return array, shape, headers


def _shape(headers: Sequence[Header | Bad], size: Size | None, channels: int | None) -> tuple[int, int, int]:
    good = [h for h in headers if isinstance(h, Header)]
    return choose_shape(good, size, channels) if good else (channels or 3, *sides(size or LARGEST_DEFAULT))


def _bytes(n: int, shape: tuple[int, int, int]) -> int:
    return n * shape[0] * shape[1] * shape[2]


def _threaded(function: Callable[[Item], R], items: Sequence[Item]) -> list[R]:
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        # PIL warns about oddities it can live with; an image of more than 89 megapixels it should not.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return [result for chunk in pool.map(lambda part: [function(item) for item in part], chunks) for result in chunk]


def reason_of(error: Exception) -> str:
    """Why an image could not be read, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that can be identified"
    text = " ".join(str(error).split())
    return text or type(error).__name__


class StreamedImages(Images):
    """Images too many for memory: decoded when taken, by a pool of threads, with a cache of recently taken ones.

    Only headers were read when the data was loaded, so a corrupt body shows itself here.
    """

    def __init__(self, files: Files, names: Sequence[str], shape: tuple[int, int, int], cache_bytes: int = 256 * 2**20) -> None:
        self.files, self.names, self.cache_bytes = files, tuple(names), cache_bytes
        self._shape = shape
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: Tensor) -> Tensor:
        """As ``Images.take``. Raises UserError where a file cannot be read."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
        channels, height, width = self._shape
        out = np.empty((len(index), height, width, channels), dtype=np.uint8)
        with self._lock:
            cached = [self._cache.get(position) for position in index.tolist()]
        missing: dict[int, list[int]] = {}
        for row, (position, image) in enumerate(zip(index.tolist(), cached, strict=True)):
            if image is None:
                missing.setdefault(position, []).append(row)
            else:
                out[row] = image
        for (position, rows), image in zip(missing.items(), self._pool.map(self._decode, missing), strict=True):
            out[rows] = image
            self._remember(position, image)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _decode(self, position: int) -> NDArray[np.uint8]:
        try:
            return decode(self.files.read(self.names[position]), self._shape)
        except Exception as error:  # as in scan
            what = f"{self.names[position]} in {self.files.path} is not ({reason_of(error)})"
            raise UserError(f"every image must be readable, but {what}; remove it") from error

    def _remember(self, position: int, image: NDArray[np.uint8]) -> None:
        with self._lock:
            self._cache[position] = image
            while len(self._cache) * image.nbytes > self.cache_bytes:
                self._cache.popitem(last=False)

    def __reduce__(self) -> tuple[type[StreamedImages], tuple[Files, tuple[str, ...], tuple[int, int, int], int]]:
        return StreamedImages, (self.files, self.names, self._shape, self.cache_bytes)
