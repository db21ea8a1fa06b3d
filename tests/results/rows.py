"""Rows of the proof tables on disk: one CSV a table, which several processes may fill at the same time.

A row is appended whole by one write under a lock, so a process killed in the middle can only leave a torn last line. Readers
leave such a line out and the next writer cuts it off. A process claims a row before it trains it, by a lock that dies with
the process: others pass over what is claimed, and nothing stays claimed for ever.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import hashlib
import io
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Key:
    """What a row is about; no two rows of a table have the same.

    Attributes:
        table: name of the table.
        method: name of the row, a method's with a word behind it where the method has several rows.
        labels: the label budget; 0 where the table has none.
        seed: of the training and of the draw of the labels, so that rows of one seed are paired.
        budget: training seconds allowed.
        knobs: every knob's value as JSON: a row is not taken for done once a default has changed.
    """

    table: str
    method: str
    labels: int
    seed: int
    budget: float
    knobs: str


@dataclass(frozen=True)
class Row:
    """One training and its scores.

    Attributes:
        key: what ran.
        encoder, parameters: what was trained.
        seconds: spent in training; ``images`` drawn in them by ``threads`` threads.
        versions, machine: what computed.
        scores: by measure, in [0, 1].
    """

    key: Key
    encoder: str
    parameters: int
    seconds: float
    images: int
    threads: int
    versions: str
    machine: str
    scores: Mapping[str, float]

    def flat(self) -> dict[str, object]:
        """One CSV line: the key's columns, the row's own, then the measures."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("key", "scores")}
        return {**dataclasses.asdict(self.key), **own, **{name: f"{value:.6f}" for name, value in self.scores.items()}}


def path_of(out: Path, table: str) -> Path:
    return out / f"{table}.csv"


def read(out: Path, table: str) -> list[Row]:
    """The table's complete rows; none where it does not exist yet."""
    path = path_of(out, table)
    if not path.exists():
        return []
    text = path.read_bytes()
    return _parsed(text[: text.rfind(b"\n") + 1].decode())


def _parsed(text: str) -> list[Row]:
    kinds: dict[str, Callable[[str], object]] = {"int": int, "float": float, "str": str}
    of_key, own = ({f.name: kinds[f.type] for f in dataclasses.fields(c) if f.type in kinds} for c in (Key, Row))
    rows = []
    for line in csv.DictReader(io.StringIO(text, newline="")):
        key = Key(**{name: kind(line.pop(name)) for name, kind in of_key.items()})  # type: ignore[arg-type]
        fields = {name: kind(line.pop(name)) for name, kind in own.items()}
        rows.append(Row(key, **fields, scores={name: float(value) for name, value in line.items()}))  # type: ignore[arg-type]
    return rows


def append(out: Path, row: Row) -> None:
    """Adds a row at the table's end.

    Raises:
        ValueError: the table on disk has other columns.
    """
    with path_of(out, row.key.table).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        whole = before.rfind(b"\n") + 1
        file.truncate(whole)
        flat = row.flat()
        head = next(csv.reader([before[:whole].decode().partition("\n")[0]]), None) if whole else None
        if head is not None and head != list(flat):
            raise ValueError(f"{file.name} has other columns than this version writes; move it away")
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(flat), lineterminator="\n")
        if head is None:
            writer.writeheader()
        writer.writerow(flat)
        _write(file, text.getvalue().encode())


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def claim(out: Path, key: Key, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone may train the row for the length of the block; ``wait`` waits until it may."""
    folder = out / ".claims"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def fill(out: Path, keys: Iterable[Key], train: Callable[[Key], Row], wait: bool = False) -> list[Key]:
    """Trains and appends the rows that are missing. Those that another process has claimed are its own, or waited for.

    Returns:
        the keys whose training failed, each with its stack trace printed: one failing method must not end the night.
    """
    failed = []
    for key in keys:
        with claim(out, key, wait) as mine:
            if mine and all(row.key != key for row in read(out, key.table)):
                try:
                    row = train(key)
                except Exception:
                    traceback.print_exc()
                    failed.append(key)
                else:
                    append(out, row)
    return failed
