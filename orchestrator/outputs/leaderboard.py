"""What a journal amounts to: the leaderboard and the finalists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.engine.history import History
from orchestrator.engine.records import TestScore, Trial

COLUMNS = (
    "rank", "trial", "method", "status", "reason", "epochs", "seconds", "val", "test_mean", "test_sd", "test_n",
)  # fmt: skip
"""The stable part of ``leaderboard.csv``; one column a knob, ``method.knob``, follows."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that was retrained.

    Attributes:
        trial: the search's trial.
        retrained: its trainings with fresh seeds that finished.
        refits: its trainings on the whole budget that finished.
        tests: test scores of the refits, or of the retrained where nothing was refitted.
    """

    trial: Trial
    retrained: tuple[Trial, ...]
    refits: tuple[Trial, ...]
    tests: tuple[TestScore, ...]

    @property
    def val(self) -> float:
        """Mean validation score over the fresh seeds; the search's own where none finished."""
        values = [t.value for t in self.retrained if t.value is not None]
        return float(np.mean(values)) if values else self.trial.value or 0.0

    @property
    def exported(self) -> Trial | None:
        """The training to export and test first: every seed is as good as another, so the first."""
        return next(iter(self.refits or self.retrained), None)

    @property
    def tested(self) -> tuple[Trial, ...]:
        """The trainings that the test set is asked about."""
        return self.refits or self.retrained

    def test_values(self) -> list[float]:
        return [score.value for score in self.tests]


def finalists(history: History) -> list[Finalist]:
    """The retrained configurations, best first by validation (ties: the faster)."""
    found = []
    for number in history.selected or []:
        jobs = [t for t in history.trials.values() if t.spec.trial == number and t.status == "finished"]
        origin = next(t for t in jobs if t.spec.purpose == "search")
        retrained = tuple(t for t in jobs if t.spec.purpose == "retrain")
        refits = tuple(t for t in jobs if t.spec.purpose == "refit")
        keys = {t.spec.key for t in refits or retrained}
        found.append(Finalist(origin, retrained, refits, tuple(s for s in history.tests if s.key in keys)))
    return sorted(found, key=lambda f: (-f.val, f.trial.seconds, f.trial.spec.trial))


def ranked(history: History) -> list[Trial]:
    """The search's trials, best first: finalists by validation, then finished ones, then by how far they came."""
    order = {f.trial.spec.key: place for place, f in enumerate(finalists(history))}
    group = {"finished": 0, "running": 1, "pruned": 1, "failed": 2}

    def place(trial: Trial) -> tuple[float, ...]:
        # All that finished have reached the top, a feature method without training an epoch.
        last = trial.rungs[-1].epoch if trial.rungs and trial.status != "finished" else 0
        value = trial.value if trial.value is not None else -math.inf
        return (order.get(trial.spec.key, len(order)), group[trial.status], -last, -value, trial.spec.trial)

    return sorted(history.search(), key=place)


def leaderboard(history: History, knobs: Sequence[str]) -> pd.DataFrame:
    """One row a trial, best first; ``COLUMNS``, then ``method.knob``, empty where it does not apply.

    Args:
        knobs: ``method.knob`` of every knob of the study's methods, in order.
    """
    tests = {f.trial.spec.key: f.test_values() for f in finalists(history)}
    rows = []
    for rank, trial in enumerate(ranked(history), start=1):
        scores = tests.get(trial.spec.key, [])
        row: dict[str, object] = {
            "rank": rank,
            "trial": trial.spec.trial,
            "method": trial.spec.method,
            "status": trial.status,
            "reason": trial.reason,
            "epochs": trial.epochs,
            "seconds": round(trial.seconds, 3),
            "val": trial.value,
            "test_mean": float(np.mean(scores)) if scores else None,
            "test_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            "test_n": len(scores) if scores else None,
        }
        row.update({f"{trial.spec.method}.{name}": value for name, value in trial.spec.values.items()})
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *knobs])
    frame["test_n"] = frame["test_n"].astype("Int64")
    return frame
