"""Where run folders lie. A storage is one file; ``contract`` says what it owes."""

from cluster.storage.contract import MissingKey, Storage, StorageError

__all__ = ["MissingKey", "Storage", "StorageError"]
