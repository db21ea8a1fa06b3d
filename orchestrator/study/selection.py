"""The fields of a study's judgement: how a trained method is scored and the winner chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from methods.protocols import PROTOCOLS
from methods.protocols.contract import Protocol
from methods.tasks import Task
from orchestrator.allocation.standings import BASELINE
from orchestrator.engine.records import Purpose
from orchestrator.study.extensions import Extension, in_python, left_behind
from orchestrator.study.fields import Strict, StudyError, lost
from orchestrator.study.shapes import choice_schema

IN_PYTHON = "(a function given in Python)"
"""Stands for the objective in a run folder, which can hold none."""


Auto = Literal["auto"]


class Selection(Strict):
    """How the best configuration is chosen after the search.

    Attributes:
        top: how many configurations are judged by folds; ``auto``: 2 to 5, by what the search has cost.
        folds: into how many parts the labels are divided, each of which judges in turn while the others teach; ``auto`` by
            the number of labels and what the search has cost. Few-shot studies are judged on their own division.
        baseline: name of a method that the winner must clearly beat: by more than one standard error of the difference over
            what the folds judged; else the baseline wins. None chooses by score alone.
        seeds: with how many seeds each.
        refit: whether the winner, where it learns from labels, is trained on the whole label budget, validation labels
            included, for the test score and the exported model. Few-shot studies refit after a cross-validation only.
        refit_seeds: with how many seeds it is trained on the whole budget; None for as many as ``seeds``.
        join: few-shot: the exported encoder is the trainings of all seeds together, their embeddings side by side. The scores
            stay those of single trainings.
        ensemble: whether the winner is exported together with the models of its folds and with finalists that improve it,
            which multiplies the cost of a prediction. Whether or not it is, the report says what it would gain.
        distill: whether that ensemble is distilled into one model, which is exported in its place: it begins as the winner and
            learns the ensemble's answers for all images of the pool, in one more training.
    """

    top: Auto | Annotated[int, Field(ge=1)] = "auto"
    folds: Auto | Annotated[int, Field(ge=2)] = "auto"
    baseline: str | None = BASELINE
    seeds: int = Field(1, ge=1)
    refit: bool = True
    refit_seeds: int | None = Field(None, ge=1)
    join: bool = False
    ensemble: bool = False
    distill: bool = False

    def repeats(self, purpose: Purpose) -> int:
        """Trainings of each finalist."""
        return self.refit_seeds if purpose == "refit" and self.refit_seeds is not None else self.seeds


class ModelCost(Strict):
    """What a model may cost at most; a trial whose model costs more fails before it is trained. None where all may.

    Attributes:
        parameters: of the model that predicts (of its encoder, where a probe predicts).
        predict_ms: milliseconds an image in a batch, on the machine that trains.
    """

    parameters: int | None = Field(None, ge=1)
    predict_ms: float | None = Field(None, gt=0, allow_inf_nan=False)


_PROTOCOL: dict[str, Any] = {"anyOf": [*choice_schema(list(PROTOCOLS))["anyOf"], {"type": "null"}]}


class SelectionFields(Strict):
    """How a trained method is scored and the winner chosen.

    Attributes:
        selection: how the winner is chosen.
        limit: what a model may cost at most.
        protocol: how a trained method is scored; None for the task's default. A name, or a name with its settings; in
            Python also a ``Protocol`` of your own.
        objective: in Python: from a ``Score`` to the number that the search maximises, instead of the score's value.
    """

    selection: Selection = Selection()
    limit: ModelCost = ModelCost()
    protocol: Annotated[str | Mapping[str, Any] | Protocol | Extension | None, WithJsonSchema(_PROTOCOL)] = None
    objective: Annotated[Any, WithJsonSchema({"enum": [None, IN_PYTHON]})] = None

    @field_validator("objective")
    @classmethod
    def _callable(cls, value: object) -> object:
        if not (value is None or value == IN_PYTHON or callable(value)):
            raise ValueError("must be a function in Python, from a Score to a number")
        return value

    def check_baseline(self, methods: Sequence[str]) -> None:
        """Raises StudyError on a baseline that is given and not among the study's methods."""
        given = self.selection.baseline
        if "baseline" in self.selection.model_fields_set and given not in (None, BASELINE, *methods):
            known = ", ".join(methods)
            raise StudyError(f"selection.baseline must be one of the study's methods ({known}) or null, got {given}")

    def check_ensemble(self, protocol: Protocol) -> None:
        """Raises StudyError on an ensemble of classifiers that the protocol does not ask, and on a student without teachers."""
        if self.selection.distill and not self.selection.ensemble:
            raise StudyError("selection.distill needs an ensemble to learn from, got ensemble: false; set ensemble: true too")
        if self.selection.ensemble and not protocol.asks_exported:
            raise StudyError(
                f"selection.ensemble averages the answers of exported classifiers, which protocol {protocol.name} does not ask;"
                " leave it out, or use predict"
            )

    def scoring_of(self, task: Callable[[], Task]) -> Protocol:
        """The protocol of a study, with its settings; the task has one of its own, and shapes what it knows."""
        if isinstance(self.protocol, Protocol):
            return self.protocol
        if isinstance(self.protocol, Extension):
            made: Protocol = self.protocol.made()
            return made
        if left_behind("protocol", self.protocol):
            raise StudyError(lost("protocol"))
        return task().protocol(self.protocol)

    def plain_protocol(self) -> Any:
        """``protocol`` for a run folder."""
        if isinstance(self.protocol, Extension):
            return self.protocol.plain()
        return in_python("protocol") if isinstance(self.protocol, Protocol) else self.protocol
