"""What every storage must do, as a test that its author runs: ``check_storage(lambda: MyStorage(...))``."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cluster.storage.contract import MissingKey, Storage, StorageError

Make = Callable[[], Storage]

ODD_KEYS = ("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".a", "a/.b", "a\\b", "a\nb", "a\0b")
"""Keys that every storage refuses."""

FIT_KEYS = ("a/b/c", "study.yaml", "trials/0003/checkpoint-2.pt", "gallery/0-1/nearest images, 95 %.png", "ä/ö")
"""Keys that every storage takes."""


def check_storage(make: Make) -> None:
    """Raises AssertionError, with what is wrong, where a storage does not keep its contract.

    Args:
        make: a new, empty storage at each call; it is called several times. Whoever calls cleans up.
    """
    for check in (
        _verbs,
        _keys,
        _values,
        _lists,
        _travels,
        _is_whole_while_overwritten,
        _is_whole_when_it_appears,
        _has_one_winner,
        _holds,
    ):
        check(make())


def _require(held: bool, rule: str) -> None:
    if not held:
        raise AssertionError(rule)


def _refuses(call: Callable[[], object], kind: type[StorageError] = StorageError) -> bool:
    try:
        call()
    except kind as error:
        _require("\n" not in str(error) and str(error) != "", f"an error is one line, got {str(error)!r}")
        return True
    return False


def _verbs(storage: Storage) -> None:
    _require(storage.list() == [], "a new storage has no keys")
    _require(_refuses(lambda: storage.get("a/b"), MissingKey), "get of a key that is not there raises MissingKey")
    storage.put("a/b", b"one")
    _require(storage.get("a/b") == b"one", "get gives what was put")
    _require(_refuses(lambda: storage.get("a"), MissingKey), "what stands before a slash is not a key by itself")
    storage.put("a/b", memoryview(b"another"))
    _require(storage.get("a/b") == b"another", "put takes the place of an earlier value, and takes a memoryview")
    _require(not storage.put_if_absent("a/b", b"third"), "put_if_absent of a key that is there returns False")
    _require(storage.get("a/b") == b"another", "put_if_absent leaves a value that is there")
    _require(storage.put_if_absent("a/c", memoryview(b"new")) is True, "put_if_absent of a new key returns True")
    _require(storage.get("a/c") == b"new", "put_if_absent of a new key writes it")
    storage.delete("a/b")
    storage.delete("a/b")
    storage.delete("never/there")
    _require(_refuses(lambda: storage.get("a/b"), MissingKey), "delete removes a key")
    _require(storage.list() == ["a/c"], "delete leaves the other keys")
    storage.delete("a/c")
    _require(storage.list() == [], "delete of the last key leaves none")
    _require(storage.put_if_absent("a", b"again"), "what stood before a slash is free when the keys behind it are gone")
    _require(isinstance(storage.get("a"), bytes), "get gives bytes")
    _require(storage.address != "", "address is what a person types")


def _keys(storage: Storage) -> None:
    for key in FIT_KEYS:
        storage.put(key, key.encode())
    for key in FIT_KEYS:
        _require(storage.get(key) == key.encode(), f"the key {key!r} can be put and got")
    for key in ODD_KEYS:
        for verb, call in {
            "get": lambda key=key: storage.get(key),
            "put": lambda key=key: storage.put(key, b""),
            "put_if_absent": lambda key=key: storage.put_if_absent(key, b""),
            "delete": lambda key=key: storage.delete(key),
            "hold": lambda key=key: storage.hold(key).__enter__(),
        }.items():
            _require(_refuses(call), f"{verb} refuses the key {key!r} with StorageError")
    _require(storage.list() == sorted(FIT_KEYS), "a key that was refused leaves nothing")


def _values(storage: Storage) -> None:
    large = bytes(range(256)) * 20_000
    for value in (b"", b"\0", b"\r\n\xff", large, b""):
        storage.put("value", value)
        _require(storage.get("value") == value, f"a value of {len(value)} bytes comes back as it was put, over any other")
    storage.put("large", memoryview(large))
    _require(storage.get("large") == large, "a memoryview of 5 MB comes back as it was put")


def _lists(storage: Storage) -> None:
    keys = ["b", "a/2", "a/10", "a/1", "a-/x", "ab", "c/d/e", "c/d-e"]
    for key in keys:
        storage.put(key, b"")
    _require(storage.list() == sorted(keys), "list is sorted by whole keys and holds all of them")
    for prefix in ("a", "a/", "a/1", "c/d", "c/d/", "c/d/e", "c/d/e/", "zz", "zz/y", "../", "/"):
        wanted = sorted(key for key in keys if key.startswith(prefix))
        _require(storage.list(prefix) == wanted, f"list({prefix!r}) holds the keys that start so, sorted")


def _travels(storage: Storage) -> None:
    storage.put("a/b", b"one")
    copy: Storage = pickle.loads(pickle.dumps(storage))  # noqa: S301 (our own bytes)
    _require(copy.get("a/b") == b"one", "a pickled copy sees what was put before")
    copy.put("a/c", b"two")
    _require(storage.list() == ["a/b", "a/c"] and storage.get("a/c") == b"two", "what a pickled copy puts is seen by all")
    _require(copy.address == storage.address, "a pickled copy has the same address")


def _is_whole_while_overwritten(storage: Storage) -> None:
    values = [bytes([letter]) * size for letter, size in ((1, 200_000), (2, 300_000), (3, 10))]
    storage.put("key", values[0])
    over = threading.Event()

    def write() -> None:
        try:
            for turn in range(30):
                storage.put("key", values[turn % 3])
        finally:
            over.set()

    def read() -> bool:
        whole = True
        while not over.is_set():
            whole = whole and storage.get("key") in values and storage.list() == ["key"]
        return whole

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        pool.submit(write).result()
        _require(
            all(r.result() for r in readers), "a reader sees a whole value, old or new, and no other key, while put writes"
        )


def _is_whole_when_it_appears(storage: Storage) -> None:
    value = b"x" * 300_000
    keys = [f"new/{number}" for number in range(10)]
    over = threading.Event()

    def write() -> None:
        try:
            for number, key in enumerate(keys):
                if number % 2:
                    storage.put(key, value)
                else:
                    storage.put_if_absent(key, value)
        finally:
            over.set()

    def read() -> bool:
        while not over.is_set():
            if any(storage.get(key) != value for key in storage.list("new/")):
                return False
        return True

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        pool.submit(write).result()
        _require(all(reader.result() for reader in readers), "a new key is listed and read only when its value is whole")


def _has_one_winner(storage: Storage) -> None:
    for turn in range(10):
        start = threading.Barrier(4)

        def put(number: int, turn: int = turn, start: threading.Barrier = start) -> bool:
            start.wait()
            return storage.put_if_absent(f"race/{turn}", bytes([number]) * 1000)

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(put, range(4)))
        _require(won.count(True) == 1, f"of four put_if_absent at once one wins, got {won.count(True)}")
        _require(storage.get(f"race/{turn}") == bytes([won.index(True)]) * 1000, "the winner of put_if_absent is what is read")


def _holds(storage: Storage) -> None:
    copy: Storage = pickle.loads(pickle.dumps(storage))  # noqa: S301 (our own bytes)
    with storage.hold("journal"):
        _require(_refuses(lambda: storage.hold("journal").__enter__()), "hold refuses a second holder")
        _require(_refuses(lambda: copy.hold("journal").__enter__()), "hold refuses a second holder in a pickled copy")
        with copy.hold("another"):
            storage.put("journal", b"x")
        _require(storage.list() == ["journal"], "what holds a key is not listed")
    try:
        with copy.hold("journal"):
            raise KeyError
    except KeyError:
        pass
    with storage.hold("journal"):
        pass
