"""A finished study, as a program sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from torch import nn

from methods.parts.encoders import Encoder, load_encoder
from methods.parts.heads import load_predictor
from orchestrator.engine.history import History
from orchestrator.folder import RunFolder
from orchestrator.outputs.leaderboard import COLUMNS, leaderboard
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
        folder: the run folder's ``best/``.
        method: name of the method.
        config: its knobs.
        validation: mean validation score.
        test: test score.
        classes: class names, in the order of the predictor's logits.
    """

    folder: Path
    method: str
    config: Mapping[str, Value]
    validation: float
    test: TestResult
    classes: tuple[str, ...]

    def load_encoder(self) -> Encoder:
        """Images [B, C, H, W], uint8 or float in [0, 1] -> embeddings [B, D].

        Raises StudyError where the winner's encoder is a class of your own, which no file can rebuild.
        """
        if not (self.folder / "encoder.pt").is_file():
            raise StudyError(f"the winner's encoder is a class of your own; load its weights from {self.folder}/checkpoint.pt")
        return load_encoder(self.folder / "encoder.pt")

    def load_predictor(self) -> nn.Module:
        """Images [B, C, H, W] -> logits [B, K]. Raises StudyError after a few-shot study, which has no fixed classes."""
        path = self.folder / "predictor.pt"
        if not path.is_file():
            raise StudyError("a few-shot study has no predictor, since its classes come with each task; use load_encoder()")
        return load_predictor(path)


@dataclass(frozen=True)
class Result:
    """What ``run`` returns. ``best`` is None where no trial finished."""

    folder: Path
    best: Best | None

    @classmethod
    def open(cls, directory: str | Path) -> Result:
        """The result in a run folder. Raises StudyError where it is no run folder."""
        folder = RunFolder.open(directory)
        return cls(folder.path, read_best(folder))

    def leaderboard(self) -> pd.DataFrame:
        """One row a trial, best first: the columns of ``leaderboard.csv``."""
        return read_leaderboard(self.folder)


def read_best(folder: RunFolder) -> Best | None:
    if not (folder.best / "scores.json").is_file():
        return None
    scores: dict[str, Any] = json.loads((folder.best / "scores.json").read_text(encoding="utf-8"))
    config: dict[str, Value] = yaml.safe_load((folder.best / "config.yaml").read_text(encoding="utf-8"))
    method = str(config.pop("method"))
    values = tuple(float(s["value"]) for s in scores["test"])
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    test = TestResult(float(np.mean(values)) if values else float("nan"), sd, len(values), values)
    return Best(folder.best, method, config, float(scores["validation"]), test, tuple(scores["classes"]))


def knob_columns(study: Study) -> list[str]:
    """``method.knob`` of every knob of the study's methods."""
    return [f"{name}.{knob}" for name, method in study.catalogue().items() for knob in method.knobs()]


def read_leaderboard(directory: str | Path, study: Study | None = None) -> pd.DataFrame:
    """The leaderboard of a run folder, finished or not: as its journal stands now."""
    folder = RunFolder.open(directory)
    history = History(read_journal(folder.storage))
    columns = knob_columns(study) if study is not None else _columns_of(folder)
    return leaderboard(history, columns)


def _columns_of(folder: RunFolder) -> list[str]:
    """The columns that were written, where the study holds what YAML cannot; else the study's."""
    if folder.leaderboard.is_file():
        return list(pd.read_csv(folder.leaderboard, nrows=0).columns[len(COLUMNS) :])
    return knob_columns(folder.load_study())
