"""The winner on a fixed list of one-shot runs, such as Omniglot's official one-shot classification task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cluster.storage import Storage
from methods.data.oneshot_runs import load_runs
from methods.parts.distances import DISTANCES, similarity_logits
from methods.parts.encoders import Encoder
from methods.protocols.contract import embed, mean_interval
from orchestrator.result import Result


@dataclass(frozen=True)
class RunsScore:
    """The outcome of one-shot runs.

    Attributes:
        error: mean of the runs' error rates.
        low, high: 95% t-interval over the runs.
        runs: how many.
        distance: what embeddings were compared by.
        answers: one row a test image: run, file, answer, truth.
    """

    error: float
    low: float
    high: float
    runs: int
    distance: str
    answers: pd.DataFrame

    def describe(self) -> str:
        spread = f" [{self.low:.1%}, {self.high:.1%}]" if np.isfinite(self.low) else " (one run: no interval)"
        return f"one-shot error {self.error:.1%}{spread} over {self.runs} runs, {len(self.answers)} images, by {self.distance}"


def one_shot(target: str | Path | Storage, runs: str | Path) -> RunsScore:
    """Classifies each test image by the nearest training image of its run, on its own and without adaptation.

    Args:
        target: the run folder of a finished study.
        runs: a folder or zip, see ``methods.data.oneshot_runs``.
    Raises:
        UserError: no run folder, no winner, or no well-formed runs.
    """
    best = Result.open(target).winner()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return score_runs(best.load_encoder().to(device), runs, distance_of(best.config))


def distance_of(config: Mapping[str, object]) -> str:
    """The distance that the winner was trained by.

    Cosine where its method has another way to compare, which embeddings alone do not carry: heads trained on each task, a
    learned weighting.
    """
    distance = config.get("distance")
    if distance in DISTANCES:
        return str(distance)
    by_margin = config.get("loss") in ("triplet", "contrastive") and config.get("normalise") is False
    return "euclidean" if by_margin else "cosine"


def score_runs(encoder: Encoder, runs: str | Path, distance: str = "cosine") -> RunsScore:
    """As ``one_shot``, with an encoder; the runs' images are resized to its own."""
    found, listed = load_runs(runs, encoder.shape)
    z = embed(encoder, found.images, np.arange(len(found), dtype=np.int64))
    rows, errors = [], []
    for run in listed:
        keys, asked = z[torch.from_numpy(run.training)], z[torch.from_numpy(run.test)]  # [N, D], [Q, D]
        answer = similarity_logits(asked[None], keys[None], distance, 1.0)[0].argmax(1).cpu().numpy()
        errors.append(float(np.mean(answer != run.truth)))
        rows += [
            (run.name, found.names[item], found.names[run.training[a]], found.names[run.training[t]])
            for item, a, t in zip(run.test, answer, run.truth, strict=True)
        ]
    error, low, high = mean_interval(np.array(errors))
    frame = pd.DataFrame(rows, columns=["run", "file", "answer", "truth"])
    return RunsScore(error, max(low, 0.0) if np.isfinite(low) else low, min(high, 1.0), len(listed), distance, frame)
