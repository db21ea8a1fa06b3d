"""A storage of one's own: the whole run folder in one SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.storage import MissingKey, Storage, StorageError, check_key
from cluster.testing import check_storage
from orchestrator import Result, Study, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def checked(key: str) -> str:
    check_key(key)
    return key


class SqliteStorage(Storage):
    """Keys are rows of one table. Processes of one machine share it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.file, timeout=60)) as database, database:
            yield database

    @property
    def address(self) -> str:
        return str(self.file)

    def get(self, key: str) -> bytes:
        with self._open() as database:
            row = database.execute("SELECT value FROM entries WHERE key = ?", (checked(key),)).fetchone()
        if row is None:
            raise MissingKey(f"{self.file} has no {key!r}; check the run folder")
        return bytes(row[0])

    def put(self, key: str, value: bytes | memoryview) -> None:
        with self._open() as database:
            database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (checked(key), bytes(value)))

    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        with self._open() as database:
            done = database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", (checked(key), bytes(value)))
            return done.rowcount == 1

    def list(self, prefix: str = "") -> list[str]:
        with self._open() as database:
            return sorted(k for (k,) in database.execute("SELECT key FROM entries") if k.startswith(prefix))

    def delete(self, key: str) -> None:
        with self._open() as database:
            database.execute("DELETE FROM entries WHERE key = ?", (checked(key),))

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        name = f"{self.file}.{checked(key).replace('/', '-')}.lock"
        lock = sqlite3.connect(name, timeout=0, isolation_level=None)
        try:
            # SQLite's own lock on a file of its own: freed by the process's death.
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            lock.close()
            raise StorageError(f"{self.file} is being written by another run; wait for it or stop it first") from None
        try:
            yield
        finally:
            lock.close()


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    numbers = iter(range(1000))
    check_storage(lambda: SqliteStorage(tmp_path / f"{next(numbers)}.sqlite"))


def test_a_study_lives_in_it(small: dict[str, Any], tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "run.sqlite")
    run(Study(**small), storage)
    result = Result.open(SqliteStorage(tmp_path / "run.sqlite"))
    assert result.best is not None
    assert len(result.leaderboard()) == 2
    blank = torch.zeros((1, *result.best.load_encoder().shape), dtype=torch.uint8)
    assert result.best.load_predictor()(blank).shape[1] == 10
    assert b"Winner: " in storage.get("report.html")
    assert {"study.yaml", "leaderboard.csv", "best/scores.json", "optuna.db"} <= set(storage.list())
