"""Using the winner on new images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cluster.storage import Storage
from methods.data.folders import load_pictures
from methods.protocols.contract import logits_of
from orchestrator.result import Result
from search_spaces.domains import UserError


def predict(
    target: str | Path | Storage,
    images: str | Path,
    *,
    abstain: float | None = None,
    confidence: float | None = None,
    probabilities: bool = False,
) -> pd.DataFrame:
    """One row an image: file, class, confidence. After a few-shot study: file, then the embedding, e0, e1, ...

    A confidence is the probability that the class is right, calibrated by the study's own labels (``Best.calibration``).

    Args:
        target: the run folder.
        images: a folder or zip of images, of any size; they are resized as the study's were.
        abstain: the share of these images, those that the model is least sure of, whose class is left blank.
        confidence: below it a class is left blank.
        probabilities: whether each class's probability follows, in a column ``p:CLASS``.
    Raises:
        UserError: no run folder, no winner, no images, a share or confidence outside 0..1, or both.
    """
    _check(abstain, confidence)
    best = Result.open(target).winner()
    if not best.classifies and (abstain is not None or confidence is not None or probabilities):
        raise UserError(
            "abstain, confidence and probabilities need fixed classes, got a few-shot study, which has none; leave them out"
        )
    encoder = best.load_encoder()
    found, _ = load_pictures(images, encoder.shape)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = np.arange(len(found), dtype=np.int64)
    model: nn.Module = (best.load_predictor() if best.classifies else encoder).to(device)
    out = logits_of(model, found.images, index).cpu()
    names = pd.DataFrame({"file": found.names})
    if not best.classifies:
        return pd.concat([names, pd.DataFrame(out.numpy(), columns=[f"e{i}" for i in range(out.shape[1])])], axis=1)
    p = out.double().softmax(dim=1)
    sure, label = p.max(dim=1)
    named = _named(sure, abstain, confidence)
    said = [best.classes[k] if keep else "" for k, keep in zip(label.tolist(), named.tolist(), strict=True)]
    answers = pd.DataFrame({"class": said, "confidence": sure.numpy().round(4)})
    each = pd.DataFrame(p.numpy().round(6), columns=[f"p:{name}" for name in best.classes])
    return pd.concat([names, answers, *([each] if probabilities else [])], axis=1)


def told(answers: pd.DataFrame) -> str:
    """What was named and what was left blank, in a line."""
    named = answers["class"] != ""
    right = f", of which {answers['confidence'][named].mean():.1%} should be right" if named.any() else ""
    return f"named {named.sum()} of {len(answers)} images{right}; {(~named).sum()} left blank"


def _named(sure: Tensor, abstain: float | None, confidence: float | None) -> Tensor:
    """bool [n]: whose class is said. By the confidences as they are written, so that nothing at the limit looks wrong."""
    if confidence is not None:
        return torch.from_numpy(sure.numpy().round(4) >= confidence)
    named = torch.ones(len(sure), dtype=torch.bool)
    blank = math.floor((abstain or 0) * len(sure) + 0.5)
    named[sure.argsort(stable=True)[:blank]] = False
    return named


def _check(abstain: float | None, confidence: float | None) -> None:
    if abstain is not None and confidence is not None:
        raise UserError(
            f"abstain, a share, and confidence, a limit, exclude each other, got {abstain:g} and {confidence:g}; give one"
        )
    for name, value, example in (("abstain", abstain, 0.1), ("confidence", confidence, 0.9)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value:g}; {example} is usual")
