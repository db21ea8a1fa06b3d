"""The default score: a method's own classifier where it has one, otherwise a linear probe."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from methods.data.records import IntArray, LabelledSubset
from methods.protocols.contract import Protocol, Score, Trained, answered, logits_of
from methods.protocols.probes import Linear
from search_spaces.domains import UserError


def unseen(protocol: str, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None) -> LabelledSubset:
    """The images to ask where nothing is fitted: ``ask``, or all of ``fit`` for a method that has not trained on its labels.

    Raises:
        UserError: the method has trained on these labels, so they cannot score it.
    """
    if ask is not None:
        return ask
    if trained.uses_labels:
        raise UserError(f"{protocol} needs labels that the method has not trained on; give it a validation part to ask")
    return fit


def own_or_probe(trained: Trained, fit: LabelledSubset, seed: int) -> nn.Module:
    """The method's own classifier, or a linear probe fitted on ``fit``."""
    if trained.predictor is not None:
        return trained.predictor
    probe = Linear().score(trained, fit, fit, seed).predictor
    assert probe is not None
    return probe


def guess(predictor: nn.Module, labelled: LabelledSubset) -> IntArray:
    """int64 [n]: the predictor's answers."""
    return logits_of(predictor, labelled.data.images, labelled.index).argmax(1).cpu().numpy()


@dataclass(frozen=True)
class Predict(Protocol):
    """Accuracy of the method's own classifier; of a linear probe on its encoder where it has none."""

    name: ClassVar[str] = "predict"
    answers: ClassVar[bool] = True
    asks_exported: ClassVar[bool] = True

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        if trained.predictor is None:
            return replace(Linear().score(trained, fit, ask, seed), protocol=self.name)
        started = time.perf_counter()
        asked = unseen(self.name, trained, fit, ask)
        logits = logits_of(trained.predictor, asked.data.images, asked.index)
        return answered(self.name, logits, asked.index, asked.label, started, trained.predictor)
