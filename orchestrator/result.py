"""A finished study, as a program sees it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from torch import nn

from cluster.storage import Storage
from methods.parts.encoders import Encoder, load_encoder
from methods.parts.heads import load_predictor
from methods.protocols.confidence import Scaling
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.folder import RunFolder
from orchestrator.outputs.leaderboard import COLUMNS, ENCODER, leaderboard
from orchestrator.study import Study, StudyError
from search_spaces.domains import Value


@dataclass(frozen=True)
class TestResult:
    """The winner's test score: mean and spread over ``n`` trainings with fresh seeds; sd is None for one."""

    mean: float
    sd: float | None
    n: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Best:
    """The winner, ready to use.

    Attributes:
        run: the run folder.
        method: name of the method.
        config: its knobs.
        validation: mean validation score.
        test: test score.
        classes: class names, in the order of the predictor's logits.
        encoder: its ``name``, and source and licence of the ``weights`` it began from; the ``size`` (height and width) at which
            it is shown images, where it resizes them; of frozen features the ``views`` that were embedded; where the study
            compared encoders its ``label``.
        calibration: what calibrates the predictor's confidences; None where nothing does.
        ensemble: where it is several, the ``trial`` of each member, its ``weight`` and its number of ``models``; ``method`` and
            ``config`` are the first's, ``test`` is that of all together.
    """

    run: RunFolder
    method: str
    config: Mapping[str, Value]
    validation: float
    test: TestResult
    classes: tuple[str, ...]
    encoder: Mapping[str, Any] = field(default_factory=dict)
    calibration: Scaling | None = None
    ensemble: tuple[Mapping[str, Any], ...] = ()

    @property
    def choice(self) -> str:
        """Which of the encoders that the study compared it is, by label; blank where there was one."""
        return str(self.encoder.get("label", ""))

    @property
    def folder(self) -> Path:
        """The run folder's ``best/``. Raises StudyError where it does not lie on this machine."""
        return self.run.path / "best"

    @property
    def classifies(self) -> bool:
        """Whether there is a predictor: not after a few-shot study."""
        return self.run.exists(f"{self.run.BEST}predictor.pt")

    def load_encoder(self) -> Encoder:
        """Images [B, C, H, W], uint8 or float in [0, 1] -> embeddings [B, D].

        Raises StudyError where the winner's encoder is a class of your own, which no file can rebuild.
        """
        if not self.run.exists(f"{self.run.BEST}encoder.pt"):
            place = f"{self.run.storage.address}/{self.run.BEST}checkpoint.pt"
            raise StudyError(f"the winner's encoder is a class of your own; load its weights from {place}")
        return load_encoder(self._file("encoder.pt"))

    def load_predictor(self) -> nn.Module:
        """Images [B, C, H, W] -> logits [B, K], whose softmax is calibrated where ``calibration`` says so.

        Raises StudyError after a few-shot study, which has no fixed classes.
        """
        if not self.classifies:
            raise StudyError("a few-shot study has no predictor, since its classes come with each task; use load_encoder()")
        return load_predictor(self._file("predictor.pt"))

    def _file(self, name: str) -> io.BytesIO:
        key = f"{self.run.BEST}{name}"
        file = io.BytesIO(self.run.storage.get(key))
        file.name = f"{self.run.storage.address}/{key}"
        return file


@dataclass(frozen=True)
class Result:
    """What ``run`` returns. ``best`` is None where no trial finished."""

    run: RunFolder
    best: Best | None

    @property
    def storage(self) -> Storage:
        """Where the run folder lies."""
        return self.run.storage

    @property
    def folder(self) -> Path:
        """The run folder. Raises StudyError where it does not lie on this machine."""
        return self.run.path

    @classmethod
    def open(cls, target: str | Path | Storage) -> Result:
        """The result in a run folder. Raises StudyError where it is no run folder."""
        folder = RunFolder.open(target)
        return cls(folder, read_best(folder))

    def winner(self) -> Best:
        """``best``. Raises StudyError where there is none yet."""
        if self.best is None:
            place = self.run.storage.address
            raise StudyError(f"{place} has no winner yet: finish the study with 'labelwise resume {place}'")
        return self.best

    def leaderboard(self) -> pd.DataFrame:
        """One row a trial, best first: the columns of ``leaderboard.csv``."""
        return read_leaderboard(self.run.storage)


def read_best(folder: RunFolder) -> Best | None:
    """The winner; None before its scores, which are written last, are there."""
    if not folder.exists(folder.SCORES):
        return None
    scores: dict[str, Any] = json.loads(folder.read_text(folder.SCORES))
    config: dict[str, Any] = yaml.safe_load(folder.read_text(f"{folder.BEST}config.yaml"))
    method, encoder, scaling = str(config.pop("method")), config.pop("encoder", {}), config.pop("calibration", None)
    values = tuple(float(s["value"]) for s in scores["test"])
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    test = TestResult(float(np.mean(values)) if values else float("nan"), sd, len(values), values)
    return Best(
        folder,
        method,
        config,
        float(scores["validation"]),
        test,
        tuple(scores["classes"]),
        encoder,
        scaling and Scaling(**scaling),
        tuple(scores.get("ensemble", ())),
    )


def knob_columns(study: Study) -> list[str]:
    """``method.knob`` of every knob of the study's methods."""
    return [f"{name}.{knob}" for name, method in study.catalogue().items() for knob in method.knobs()]


def read_leaderboard(target: str | Path | Storage, study: Study | None = None) -> pd.DataFrame:
    """The leaderboard of a run folder, finished or not: as its journal stands now."""
    folder = RunFolder.open(target)
    history = History(read_journal(folder.storage))
    columns = knob_columns(study) if study is not None and study.methods is not None else _columns_of(folder)
    return leaderboard(history, columns)


def _columns_of(folder: RunFolder) -> list[str]:
    """The columns that were written, where the study holds what YAML cannot; else the study's."""
    if folder.exists(folder.LEADERBOARD):
        written = pd.read_csv(io.StringIO(folder.read_text(folder.LEADERBOARD)), nrows=0).columns[len(COLUMNS) :]
        return [name for name in written if name != ENCODER]
    return knob_columns(folder.load_study())
