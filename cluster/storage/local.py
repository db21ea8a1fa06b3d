"""A run folder on this machine's disk, or on one that all machines mount."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.storage.contract import MissingKey, Storage, StorageError, check_key

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer."""


@dataclass(frozen=True)
class LocalStorage(Storage):
    """Keys as files under ``path``, which need not be there before the first ``put``.

    A value is written to a temporary file beside its place, synced once, and renamed: after a loss of power a key has its old
    value or its new one. Names that begin with a dot (temporary files, locks) are not keys.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        # Resolved: workers have other working directories.
        object.__setattr__(self, "path", Path(path).resolve())

    @property
    def address(self) -> str:
        return str(self.path)

    def path_of(self, key: str) -> Path:
        """The key's file, for programs that read files. Raises StorageError for an unfit key."""
        check_key(key)
        return self.path / key

    def get(self, key: str) -> bytes:
        path = self.path_of(key)
        with self._in_one_line(key, "read"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise MissingKey(f"{self.path} has no {key}") from None

    def put(self, key: str, value: bytes | memoryview) -> None:
        path = self.path_of(key)
        with self._in_one_line(key, "written"), _written(path, value) as temporary:
            os.replace(temporary, path)

    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        path = self.path_of(key)
        with self._in_one_line(key, "written"):
            if path.exists():
                return False
        with self._in_one_line(key, "written"), _written(path, value) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._renamed_if_absent(temporary, path)
        return True

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        try:
            check_key(folder or "any")
        except StorageError:
            return []
        with self._in_one_line(prefix or "the folder", "listed"):
            return sorted(_keys(str(self.path), folder, prefix))

    def delete(self, key: str) -> None:
        path = self.path_of(key)
        with self._in_one_line(key, "deleted"):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
        for folder in path.parents[: len(path.relative_to(self.path).parts) - 1]:
            try:
                folder.rmdir()
            except OSError:
                # Not empty: another key lies there, and so in all folders above.
                return

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        check_key(key)
        with self._in_one_line(key, "held"):
            # In the folder itself, so that a folder whose keys are deleted is empty.
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / f".{key.replace('/', '+')}.lock").open("ab")
        with file:
            with self._in_one_line(key, "held"):
                if not _locked(file.fileno(), wait=False):
                    raise StorageError(f"{self.path} is being written by another run; wait for it or stop it first")
            yield

    def _renamed_if_absent(self, temporary: str, path: Path) -> bool:
        """Where there are no hard links: a rename that others wait for."""
        with (self.path / ".absent").open("ab") as file:
            _locked(file.fileno(), wait=True)
            if path.exists():
                return False
            os.replace(temporary, path)
            return True

    @contextmanager
    def _in_one_line(self, key: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{key} cannot be {done} in {self.path}: {error.strerror}; mend that or give another folder"
            ) from error


@contextmanager
def _written(path: Path, value: bytes | memoryview) -> Iterator[str]:
    """A temporary file beside ``path`` that holds the value and is on disk; gone when the block ends."""
    handle, temporary = _temporary_in(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(value)
            file.flush()
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _temporary_in(folder: Path) -> tuple[int, str]:
    for _ in range(100):
        try:
            return tempfile.mkstemp(dir=folder, prefix=".put-")
        except FileNotFoundError:
            # A ``delete`` elsewhere may take an empty folder away at any moment.
            with suppress(FileNotFoundError):
                folder.mkdir(parents=True, exist_ok=True)
    raise FileNotFoundError(errno.ENOENT, "the folder disappears again and again", str(folder))


def _locked(handle: int, wait: bool) -> bool:
    """Locks an open file until it is closed; False where another process holds it and ``wait`` is not wanted."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _keys(root: str, folder: str, prefix: str) -> Iterator[str]:
    """The keys under a folder that start with the prefix, in no order; folders that cannot hold any are not read."""
    try:
        entries = list(os.scandir(os.path.join(root, folder)))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        key = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith(".") or not key.startswith(prefix):
            continue
        if entry.is_dir():
            yield from _keys(root, key, prefix)
        else:
            yield key
