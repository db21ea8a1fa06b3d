"""The run folder: everything a study leaves.

::

    study.yaml        the resolved study            report.html      for people
    journal.jsonl     what happened, event by event  tensorboard/     for ``tensorboard --logdir``
    leaderboard.csv   one row a trial, best first    verdict.txt      what may be said of the winner
    optuna.db         for Optuna's own tools
    best/             config.yaml, scores.json, encoder.pt, predictor.pt, checkpoint.pt
    trials/KEY/       checkpoints of finalists, stack traces of failures, pictures of what a method sees
    gallery/KEY/      pictures of what the best model makes of test images
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from methods.parts.files import write_text
from orchestrator.study import Study, StudyError, load_study


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.yaml"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def leaderboard(self) -> Path:
        return self.path / "leaderboard.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def verdict(self) -> Path:
        """What may be said of the winner, a sentence a line."""
        return self.path / "verdict.txt"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def optuna(self) -> Path:
        return self.path / "optuna.db"

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def gallery(self, key: str) -> Path:
        """Pictures of what the model trained as job ``key`` makes of test images."""
        return self.path / "gallery" / key

    @property
    def scratch(self) -> Path:
        """Tune's own files: of no use after the study, and removed then."""
        return self.path / ".ray"

    @staticmethod
    def check(path: Path) -> None:
        """Raises StudyError where ``create`` would fail, before any work is done."""
        if path.exists():
            raise StudyError(f"{path} exists already; give another --out, or go on with 'labelwise resume {path}'")
        parent = next(p for p in path.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise StudyError(f"the run folder {path} cannot be made: {parent} cannot be written; give another --out")

    @classmethod
    def create(cls, path: Path, study: Study) -> RunFolder:
        """A new run folder with its study, made whole or not at all.

        Raises:
            StudyError: the folder exists already, or its parent cannot be written.
        """
        cls.check(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        except OSError as error:
            raise StudyError(f"the run folder {path} cannot be made: {error.strerror}; give another --out") from None
        try:
            write_text(temporary / "study.yaml", dump_study(study))
            os.chmod(temporary, 0o755)
            (temporary / "trials").mkdir()
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls(path.resolve())

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder. Raises StudyError where it is none."""
        folder = cls(Path(path).resolve())
        if not folder.study.is_file():
            raise StudyError(f"{path} is not a run folder: it has no study.yaml; give the folder that 'run' printed")
        return folder

    def load_study(self, imports: Sequence[str] = ()) -> Study:
        """The study, with code of one's own from the modules ``imports``."""
        return load_study(self.study, imports=imports)


def dump_study(study: Study) -> str:
    return yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True)


def file_name(title: str) -> str:
    """A picture's title as a file name on every system."""
    return re.sub(r"[^\w ,.%+-]+", "-", title)
