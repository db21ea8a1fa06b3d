"""Where a run folder lies: five verbs over the keys of one folder, and one writer at a time.

A key is a relative path with forward slashes, such as ``trials/0003/checkpoint-2.pt``; ``check_key`` says which are fit. What
is put is there whole or not at all, and once ``put`` returns it survives a loss of power as far as the place can promise it.
Storages travel to workers, so they are picklable and hold no open file. Every storage passes ``cluster.testing.check_storage``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from cluster.errors import ClusterError


class StorageError(ClusterError):
    """A storage that cannot be read or written; one line that names the key and the cause."""


class MissingKey(StorageError):
    """``get`` of a key that is not there."""


def check_key(key: str) -> None:
    """Raises StorageError where ``key`` would not mean the same in every storage, or would leave its folder."""
    parts = key.split("/")
    if not all(parts) or any(part.startswith(".") for part in parts) or "\\" in key or not key.isprintable():
        raise StorageError(
            f"a key is a relative path whose parts are not empty and do not begin with a dot, without backslashes, got {key!r}"
        )


class Storage(ABC):
    """The keys of one run folder. A key that is not ``check_key``'s is refused with StorageError by every verb."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What a person types to come back to this folder: a path or a URL."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The value. Raises MissingKey."""

    @abstractmethod
    def put(self, key: str, value: bytes | memoryview) -> None:
        """Writes the value, in place of an earlier one. Raises StorageError (no space, no permission)."""

    @abstractmethod
    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        """Writes the value where the key is not there yet, and says whether it did; of several at once one succeeds."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted. Any text may be asked for."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes a key; nothing happens where it is not there."""

    @abstractmethod
    def hold(self, key: str) -> AbstractContextManager[None]:
        """Keeps others from holding ``key`` while the block runs. A holder's death frees it.

        Raises:
            StorageError: another living process holds it.
        """
