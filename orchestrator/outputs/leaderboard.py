"""What a journal amounts to: the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial

COLUMNS = (
    "rank", "trial", "method", "status", "reason", "epochs", "seconds", "val", "test_mean", "test_sd", "test_n", "tested",
)  # fmt: skip
"""The stable part of ``leaderboard.csv``; where the study compares encoders one more, ``ENCODER``, follows, then one a knob,
``method.knob``."""

ENCODER = "encoder"


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
    """One row a trial, best first; ``COLUMNS``, ``ENCODER`` where several are compared, then ``method.knob``, empty where it
    does not apply.

    Args:
        knobs: ``method.knob`` of every knob of the study's methods, in order.
    """
    board = {f.trial.spec.key: f for f in finalists(history)}
    rows = []
    for rank, trial in enumerate(ranked(history), start=1):
        finalist = board.get(trial.spec.key)
        scores = finalist.test_values() if finalist else []
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
            "tested": finalist.tested_as if finalist and scores else None,
        }
        if trial.spec.encoder:
            row[ENCODER] = trial.spec.encoder
        row.update({f"{trial.spec.method}.{name}": value for name, value in trial.spec.values.items()})
        rows.append(row)
    compared = [ENCODER] if any(trial.spec.encoder for trial in history.search()) else []
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *compared, *knobs])
    frame["test_n"] = frame["test_n"].astype("Int64")
    return frame
