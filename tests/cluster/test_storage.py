"""LocalStorage and an in-memory storage pass the shipped suite; storages that break one rule each do not."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.storage import LocalStorage, MissingKey, Storage, StorageError, check_key, local, open_storage
from cluster.testing import FIT_KEYS, ODD_KEYS, check_storage

WORLD: dict[int, dict[str, bytes]] = {}
HELD: set[tuple[int, str]] = set()
LOCK = threading.Lock()


class MemoryStorage(Storage):
    """Keys in this process, the same for all copies with one number."""

    def __init__(self) -> None:
        self.number = len(WORLD)
        WORLD[self.number] = {}

    @property
    def values(self) -> dict[str, bytes]:
        return WORLD[self.number]

    @property
    def address(self) -> str:
        return f"memory {self.number}"

    def get(self, key: str) -> bytes:
        check_key(key)
        if key not in self.values:
            raise MissingKey(f"{self.address} has no {key}")
        return self.values[key]

    def put(self, key: str, value: bytes | memoryview) -> None:
        check_key(key)
        with LOCK:
            self.values[key] = bytes(value)

    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        check_key(key)
        with LOCK:
            return self.values.setdefault(key, made := bytes(value)) is made

    def list(self, prefix: str = "") -> list[str]:
        with LOCK:
            return sorted(key for key in self.values if key.startswith(prefix))

    def delete(self, key: str) -> None:
        check_key(key)
        with LOCK:
            self.values.pop(key, None)

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        check_key(key)
        with LOCK:
            if (self.number, key) in HELD:
                raise StorageError(f"{self.address} is being written by another run; wait for it or stop it first")
            HELD.add((self.number, key))
        try:
            yield
        finally:
            HELD.remove((self.number, key))


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    numbers = iter(range(1000))
    return lambda: tmp_path / f"s{next(numbers)}"


def test_local_conforms(folders: Callable[[], Path]) -> None:
    check_storage(lambda: LocalStorage(folders()))


def test_memory_conforms() -> None:
    check_storage(MemoryStorage)


def test_local_conforms_where_there_are_no_hard_links(folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    check_storage(lambda: LocalStorage(folders()))


class TornPut(MemoryStorage):
    def put(self, key: str, value: bytes | memoryview) -> None:
        check_key(key)
        for end in (len(value) // 2, len(value)):
            self.values[key] = bytes(value[:end])
            time.sleep(0.002)


class TornNewKey(MemoryStorage):
    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        won = super().put_if_absent(key, value[: len(value) // 2])
        time.sleep(0.002)
        if won:
            self.put(key, value)
        return won


class EverybodyWins(MemoryStorage):
    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        absent = key not in self.values
        time.sleep(0.002)
        if absent:
            self.put(key, value)
        return absent


class LastOneWins(MemoryStorage):
    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        self.put(key, value)
        return True


class Unsorted(MemoryStorage):
    def list(self, prefix: str = "") -> list[str]:
        return [key for key in self.values if key.startswith(prefix)]


class WholeFoldersOnly(MemoryStorage):
    def list(self, prefix: str = "") -> list[str]:
        return [key for key in super().list() if not prefix or key.startswith(prefix.rstrip("/") + "/")]


class DeletesOnce(MemoryStorage):
    def delete(self, key: str) -> None:
        self.get(key)
        super().delete(key)


class TravelsEmpty(MemoryStorage):
    def __reduce__(self) -> tuple[type[MemoryStorage], tuple[()]]:
        return TravelsEmpty, ()


class HoldsNothing(MemoryStorage):
    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        check_key(key)
        yield


class HoldsForEver(MemoryStorage):
    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        check_key(key)
        if (self.number, key) in HELD:
            raise StorageError("held")
        HELD.add((self.number, key))
        yield


class AnyKey(MemoryStorage):
    def put(self, key: str, value: bytes | memoryview) -> None:
        self.values[key] = bytes(value)


class ForgetsEmptyValues(MemoryStorage):
    def put(self, key: str, value: bytes | memoryview) -> None:
        check_key(key)
        if len(value):
            super().put(key, value)


class Truncates(MemoryStorage):
    def put(self, key: str, value: bytes | memoryview) -> None:
        super().put(key, value[:4_000_000])


class OtherError(MemoryStorage):
    def get(self, key: str) -> bytes:
        check_key(key)
        if key not in self.values:
            raise StorageError(f"no {key}")
        return self.values[key]


@pytest.mark.parametrize(
    "broken",
    [
        TornPut,
        TornNewKey,
        EverybodyWins,
        LastOneWins,
        Unsorted,
        WholeFoldersOnly,
        DeletesOnce,
        TravelsEmpty,
        HoldsNothing,
        HoldsForEver,
        AnyKey,
        ForgetsEmptyValues,
        Truncates,
        OtherError,
    ],
)
def test_a_broken_storage_does_not_conform(broken: type[Storage]) -> None:
    with pytest.raises((AssertionError, StorageError)):
        check_storage(broken)


def test_keys() -> None:
    for key in FIT_KEYS:
        check_key(key)
    for key in ODD_KEYS:
        with pytest.raises(StorageError, match="a key is a relative path"):
            check_key(key)


def test_a_put_syncs_once_and_leaves_a_file_for_all_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "run")
    synced = []
    monkeypatch.setattr(local.os, "fsync", synced.append)
    storage.put("a/b", b"x" * 2000)
    assert len(synced) == 1
    path = storage.path_of("a/b")
    assert path == tmp_path / "run" / "a" / "b"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert storage.put_if_absent("a/c", b"y")
    assert len(synced) == 2
    assert not storage.put_if_absent("a/c", b"z")
    assert len(synced) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["b", "c"], "no temporary file is left"


def test_a_failed_put_leaves_the_old_value_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    for call in (lambda: storage.put("a", b"new"), lambda: storage.put_if_absent("b", b"new")):
        with pytest.raises(StorageError, match=r"^[ab] cannot be written in /.*: No space left on device; ") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert storage.get("a") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"")
    with pytest.raises(StorageError, match="a/b cannot be written in"):
        storage.put("a/b", b"")
    storage.put("c/d", b"")
    with pytest.raises(StorageError, match="c cannot be written in"):
        storage.put("c", b"")
    with pytest.raises(MissingKey, match=f"{tmp_path} has no a/b"):
        storage.get("a/b")
    storage.delete("a/b")
    storage.delete("c")
    assert storage.list() == ["a", "c/d"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"a cannot be written in .*: Permission denied; "):
            LocalStorage(tmp_path).put("a", b"")
    finally:
        tmp_path.chmod(0o755)


def test_list_skips_temporary_files_locks_and_hidden_folders(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/b", b"")
    (tmp_path / "a" / ".put-x").write_bytes(b"half")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "state").write_bytes(b"")
    with storage.hold("a/b"):
        assert storage.list() == ["a/b"]


def test_delete_takes_empty_folders_along_but_never_the_storage(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "run")
    storage.put("a/b/c/d", b"")
    storage.put("a/e", b"")
    storage.delete("a/b/c/d")
    assert [p.name for p in (tmp_path / "run" / "a").iterdir()] == ["e"]
    storage.delete("a/e")
    assert list((tmp_path / "run").iterdir()) == []


def test_put_and_delete_in_one_folder_at_once(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def turn(name: str) -> None:
        for _ in range(200):
            storage.put(f"deep/er/{name}", b"x")
            storage.delete(f"deep/er/{name}")

    threads = [threading.Thread(target=turn, args=(name,)) for name in "ab"]
    failed: list[object] = []
    hook, threading.excepthook = threading.excepthook, failed.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert failed == []
    assert storage.list() == []


def test_opening_makes_nothing_and_travels_to_other_working_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("run")
    assert storage.list() == []
    assert list(tmp_path.iterdir()) == []
    assert storage == open_storage(tmp_path / "run") == LocalStorage("run")
    assert storage.address == str(tmp_path / "run")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)) == storage  # noqa: S301 (our own bytes)
    memory = MemoryStorage()
    assert open_storage(memory) is memory
    with pytest.raises(StorageError, match="s3://bucket/run"):
        open_storage("s3://bucket/run")


HOLDER = """
import sys, time
from cluster.storage import LocalStorage
with LocalStorage(sys.argv[1]).hold("journal"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_hold_tells_who_and_a_death_frees_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    root = str(Path(local.__file__).parents[2])
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=f"^{tmp_path} is being written by another run; wait for it or stop it first$"),
            storage.hold("journal"),
        ):
            pass
        process.kill()
        process.wait(60)
        with storage.hold("journal"):
            pass
    finally:
        process.kill()
        process.communicate()
