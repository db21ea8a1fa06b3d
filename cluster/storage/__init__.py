"""Where a run folder lies: the contract of a storage, and the storages that come with this package."""

from __future__ import annotations

from pathlib import Path

from cluster.storage.contract import MissingKey, Storage, StorageError, check_key
from cluster.storage.local import LocalStorage

__all__ = ["LocalStorage", "MissingKey", "Storage", "StorageError", "check_key", "open_storage"]


def open_storage(target: str | Path | Storage) -> Storage:
    """The storage at a path, or the one given. Nothing is made before the first ``put``.

    Raises:
        StorageError: an address that is not a path.
    """
    if isinstance(target, Storage):
        return target
    if "://" in str(target):
        raise StorageError(f"a run folder is a path on this machine or a Storage object, got {target}; give one of those")
    return LocalStorage(target)
