"""Embeddings of earlier studies, in a folder of the user's: what is the same to the last byte is computed once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.storage import LocalStorage, StorageError

VARIABLE = "LABELWISE_CACHE"
"""Environment variable that names another folder; empty for no cache at all."""

LIMIT = 4 * 2**30
"""Bytes that the cache may hold; what was used longest ago goes first."""


@dataclass(frozen=True)
class FeatureCache:
    """A folder of files by digest. Nothing fails where it cannot be read or written: then everything is computed anew.

    Attributes:
        folder: where it lies; None for none.
        limit: bytes that it may hold.
    """

    folder: Path | None
    limit: int = LIMIT

    @classmethod
    def of_user(cls) -> FeatureCache:
        """``$LABELWISE_CACHE``, or ``~/.cache/labelwise``."""
        given = os.environ.get(VARIABLE)
        if given == "":
            return cls(None)
        return cls(Path(given) if given else Path.home() / ".cache" / "labelwise")

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / "features" / f"{key}.npy"

    def holds(self, key: str) -> bool:
        path = self._path(key)
        return path is not None and path.is_file()

    def get(self, key: str) -> bytes | None:
        """The value, used now; None where it is not there."""
        path = self._path(key)
        if path is None:
            return None
        with suppress(OSError):
            value = path.read_bytes()
            with suppress(OSError):
                os.utime(path)
            return value
        return None

    def put(self, key: str, value: bytes | memoryview) -> None:
        """Writes the value whole or not at all, and makes room for it."""
        if self.folder is None or len(value) > self.limit:
            return
        with suppress(StorageError, OSError):
            LocalStorage(self.folder).put(f"features/{key}.npy", value)
            self._make_room()

    def _make_room(self) -> None:
        assert self.folder is not None
        files = [(path.stat(), path) for path in (self.folder / "features").glob("*.npy")]
        held = 0
        for facts, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            held += facts.st_size
            if held > self.limit:
                path.unlink(missing_ok=True)
