"""The run folder: everything a study leaves, as keys over a storage.

::

    study.yaml        the resolved study            report.html      for people
    journal/          what happened, event by event  tensorboard/     for ``tensorboard --logdir``
    leaderboard.csv   one row a trial, best first    verdict.txt      what may be said of the winner
    optuna.db         for Optuna's own tools
    best/             config.yaml, scores.json, encoder.pt, predictor.pt, checkpoint.pt
    trials/KEY/       checkpoints of finalists, stack traces of failures, pictures of what a method sees
    gallery/KEY/      pictures of what the best model makes of test images
    care/             likely label errors, near duplicates, leaks, odd images: lists, picture sheets, care.json
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
import yaml

from cluster.storage import LocalStorage, Storage, StorageError, open_storage
from orchestrator.engine.events import FORMAT
from orchestrator.study import Study, StudyError, parse_study

OLD_JOURNAL, OLD_FORMAT = "journal.jsonl", 2
"""The journal of formats 1 and 2: one file."""


@dataclass(frozen=True)
class RunFolder:
    """The keys of a run folder. A prefix ends with a slash."""

    storage: Storage

    STUDY: ClassVar[str] = "study.yaml"
    JOURNAL: ClassVar[str] = "journal/"
    LEADERBOARD: ClassVar[str] = "leaderboard.csv"
    REPORT: ClassVar[str] = "report.html"
    VERDICT: ClassVar[str] = "verdict.txt"
    """What may be said of the winner, a sentence a line."""
    OPTUNA: ClassVar[str] = "optuna.db"
    TENSORBOARD: ClassVar[str] = "tensorboard/"
    TRIALS: ClassVar[str] = "trials/"
    CARE: ClassVar[str] = "care/"
    BEST: ClassVar[str] = "best/"
    SCORES: ClassVar[str] = "best/scores.json"
    """Written last of ``best/``: where it is there, the winner is whole."""

    @staticmethod
    def trial(key: str, name: str = "") -> str:
        """Key of a file that trial ``key`` leaves, its prefix without a name: checkpoints, pictures, a stack trace."""
        return f"trials/{key}/{name}"

    @staticmethod
    def gallery(key: str) -> str:
        """Prefix of the pictures of what the model trained as trial ``key`` makes of test images."""
        return f"gallery/{key}/"

    @property
    def path(self) -> Path:
        """The folder on this machine. Raises StudyError where it lies elsewhere."""
        if isinstance(self.storage, LocalStorage):
            return self.storage.path
        raise StudyError(f"{self.storage.address} is no folder of this machine and has no path; read it by its storage's keys")

    @staticmethod
    def check(target: str | Path | Storage) -> None:
        """Raises StudyError where ``create`` would fail, before any work is done."""
        storage, name = open_storage(target), _name(target)
        local = storage.path if isinstance(storage, LocalStorage) else None
        if local.exists() if local is not None else storage.list():
            raise StudyError(f"{name} exists already; give another --out, or go on with 'labelwise resume {name}'")
        if local is None:
            return
        parent = next(p for p in local.parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise StudyError(f"the run folder {name} cannot be made: {parent} cannot be written; give another --out")

    @classmethod
    def create(cls, target: str | Path | Storage, study: Study) -> RunFolder:
        """A new run folder with its study, made whole or not at all.

        Raises:
            StudyError: there is one already, or its parent cannot be written.
            StorageError: the study cannot be written.
        """
        cls.check(target)
        folder = cls(open_storage(target))
        try:
            made = folder.storage.put_if_absent(cls.STUDY, dump_study(study).encode())
        except StorageError:
            if isinstance(folder.storage, LocalStorage):
                # An empty folder would refuse the next try.
                with suppress(OSError):
                    folder.storage.path.rmdir()
            raise
        if not made:
            raise StudyError(f"{_name(target)} exists already; give another --out, or wait for the study that makes it")
        return folder

    @classmethod
    def open(cls, target: str | Path | Storage) -> RunFolder:
        """An existing run folder. Raises StudyError where it is none, or one of an earlier format."""
        folder = cls(open_storage(target))
        if not folder.exists(cls.STUDY):
            raise StudyError(f"{_name(target)} is not a run folder: it has no study.yaml; give the folder that 'run' printed")
        if folder.exists(OLD_JOURNAL):
            raise StudyError(
                f"{_name(target)} is a run folder of format {OLD_FORMAT} or older ({OLD_JOURNAL}), and this version reads "
                f"format {FORMAT}; run the study anew, or read it with the labelwise that made it"
            )
        return folder

    def load_study(self, imports: Sequence[str] = ()) -> Study:
        """The study as it was resolved, with code of one's own from the modules ``imports``.

        Raises:
            StudyError: the file was spoilt since, or names code that may not be imported.
        """
        return parse_study(self.read_text(self.STUDY), f"{self.storage.address}/{self.STUDY}", "study", imports=imports)

    def exists(self, key: str) -> bool:
        return key in self.storage.list(key)

    def read_text(self, key: str) -> str:
        """A text. Raises MissingKey, or StudyError where the value is no UTF-8."""
        try:
            return self.storage.get(key).decode()
        except UnicodeDecodeError as error:
            raise StudyError(f"{self.storage.address}/{key} cannot be read: {error}") from None

    def write_text(self, key: str, text: str) -> None:
        self.storage.put(key, text.encode())

    def pictures(self, prefix: str) -> dict[str, bytes]:
        """The PNG files under a prefix by their titles, in order."""
        keys = [key for key in self.storage.list(prefix) if key.endswith(".png")]
        return {PurePosixPath(key).stem: self.storage.get(key) for key in keys}


def save_tensors(storage: Storage, key: str, state: Mapping[str, Any]) -> None:
    """Writes tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    storage.put(key, buffer.getbuffer())


def load_tensors(storage: Storage, key: str, device: torch.device | str) -> Any:
    """What ``save_tensors`` wrote, on ``device``; no code in it is run. Raises MissingKey."""
    return torch.load(io.BytesIO(storage.get(key)), map_location=device, weights_only=True)


def dump_study(study: Study) -> str:
    return yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True)


def file_name(title: str) -> str:
    """A picture's title as a file name on every system."""
    return re.sub(r"[^\w ,.%+-]+", "-", title)


def _name(target: str | Path | Storage) -> str:
    """A run folder as the person called it."""
    return target.address if isinstance(target, Storage) else str(target)
