"""What a task is: how data is divided, what a method may see, what validates, what is refitted, tested and exported."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from methods.contracts import Method
from methods.data.records import IntArray, LabelledSubset, Source, Split, TrainData
from methods.protocols import FewShot, protocol
from methods.protocols.contract import Protocol, Score, Trained, mean_score
from search_spaces.domains import UserError

ScoredOn = Literal["validation", "episodes", "folds", "elsewhere"]
"""Which labels were scored: the division's validation part, episodes, the parts of all folds of a cross-validation, or images
of another data set."""

UNITS: Mapping[ScoredOn, str] = {
    "validation": "validation images",
    "elsewhere": "images of another data set",
    "episodes": "episodes",
    "folds": "validation images",
}
"""What pairs two trials, by what was scored."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """What judged a trial.

    Attributes:
        score: of the validation.
        scored_on: which labels were scored.
        units: what each unit that every method answers contributes, in one order, so that any two trials pair: bool [m] or
            float32 [m]. None where the score is no mean over units.
    """

    score: Score
    scored_on: ScoredOn
    units: np.ndarray | None


@dataclass(frozen=True)
class Facts:
    """What the verdict and the report say of a study's task and division. Sentences are blank where there is nothing to say.

    Attributes:
        setting: the labels or episodes in a phrase, for the report's head.
        units: what pairs two trials, by ``scored_on``.
        asked: what a test asks, by ``scored_on``: ``images`` or ``episodes``.
        folds: phrase after the winner's validation score.
        taken: where the test comes from.
        no_test: sentence of a study without a test.
        exported, refitted: sentence on what the exported model was trained on, as the search trains it and after a refit.
        left_out: sentence on what could not be asked.
        luck: sentence on what the spread over seeds does not include.
        labels: of the whole budget, where more of them may be asked of a person; else 0.
    """

    setting: str
    units: Mapping[ScoredOn, str]
    asked: Mapping[ScoredOn, str]
    folds: str
    taken: str
    no_test: str
    exported: str
    refitted: str
    left_out: str
    luck: str
    labels: int = 0


class Task(ABC):
    """What is to be learned and how it is judged. Concrete tasks are final frozen dataclasses, records of settings that
    travel to workers; settings are checked against their annotations, in one line.

    A task of one's own states ``name``, ``divide`` and ``facts``; the other answers are those of a division whose parts share
    their classes, where a method that learns from labels is judged by the validation part and any other by a probe.

    Attributes:
        name: as in study files.
        default_protocol: how trained methods are scored unless the study says otherwise.
    """

    name: ClassVar[str]
    default_protocol: ClassVar[str] = "predict"

    def __post_init__(self) -> None:
        for setting, adapter in _adapters(type(self)).items():
            value = getattr(self, setting)
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                rules = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
                raise UserError(f"{self.name}.{setting}: {' or '.join(rules)}, got {value!r}") from None

    def protocol(self, given: str | Mapping[str, Any] | None = None) -> Protocol:
        """The task's own protocol, or the given one (a name, or a name with its settings).

        Raises:
            UserError: an unknown protocol or setting.
        """
        name, settings = named(given, self.default_protocol)
        return protocol(name, **settings)

    def check(self, protocol: Protocol, test: object = None) -> None:  # noqa: B027
        """Raises UserError for what can be said before the data is there; ``test`` as in ``divide``, or a path or name."""

    def check_selection(self, refit: bool, refit_seeds: int | None, join: bool) -> None:
        """Raises UserError where finalists cannot be refitted or joined as the study's selection wants."""
        if join:
            raise UserError(f"selection.join is for task: few_shot, got {self.name}; leave it out")
        if refit_seeds is not None and not refit:
            raise UserError(NO_REFIT.format(refit_seeds))

    @abstractmethod
    def divide(self, source: Source, test: float | Source | Literal["none"] | None, protocol: Protocol, seed: int) -> Split:
        """The data, divided.

        Args:
            source: the data; its own test set is used unless ``test`` says otherwise.
            test: a test set, a share to hold out, ``none`` for no test, or None for the task's rule.
            protocol: how trained methods will be scored.
            seed: of all draws.
        Raises:
            UserError: this data cannot be divided so, in one line.
        """

    def divisions(self, split: Split) -> tuple[Split, ...]:
        """The splits on which a configuration is trained and judged: the folds of a cross-validation, else one."""
        return split.divisions()

    def shares_pool(self, split: Split) -> bool:
        """Whether all divisions train on the same images, so that a training that reads no label serves them all."""
        return True

    def fold_counts(self, split: Split) -> tuple[int, ...]:
        """Into how many folds the labels may well be divided to judge finalists, ascending; (1,) where they are not."""
        return (1,)

    def folds(self, split: Split, count: int, seed: int) -> tuple[Split, ...]:
        """Divisions that judge finalists in turn; the first of them is ``split`` itself where it validates on the same images.

        Raises:
            UserError: these labels cannot be divided into so many.
        """
        if count != 1:
            raise UserError(f"selection.folds is for tasks that divide their labels, got {count} for {self.name}; leave it out")
        return (split,)

    def final_data(self, split: Split) -> TrainData:
        """What the refit trains on."""
        return split.train

    def truth(self, split: Split, data: TrainData) -> IntArray | None:
        """int64 [N]: the labels of the budget that ``data`` hides from methods, -1 elsewhere; None where no image has one.

        ``data`` is what a method is trained on: ``final_data``, or the training data of a division.
        Pseudo-labels are held against them. Labels beyond the budget are not among them: nobody knows those.
        """
        return None

    def refits(self, split: Split, method: Method) -> bool:
        """Whether a final fit on more than the search saw exists for this method."""
        return False

    def judge(self, protocol: Protocol, models: Sequence[Trained], split: Split, seed: int) -> Judgement:
        """The validation of a configuration.

        Every model, frozen or trained, has the same labels to learn from and answers for the same images.

        Args:
            models: one for each of the split's ``divisions``.
        """
        episodes = isinstance(protocol, FewShot)
        own: ScoredOn = "elsewhere" if protocol.elsewhere else "validation"
        scored_on: ScoredOn = "folds" if split.folds else "episodes" if episodes else own
        parts = zip(models, self.divisions(split), strict=True)
        score = mean_score([protocol.score(model, part.labelled, part.validation, seed) for model, part in parts])
        score = self.measured(score)
        return Judgement(score, scored_on, paired_units(score))

    def test(self, protocol: Protocol, model: Trained, split: Split, test: LabelledSubset, refitted: bool, seed: int) -> Score:
        """The score on the test set.

        Args:
            split: without its test part.
            refitted: whether the model was trained on ``final_data``.
        """
        fit = split.labelled if isinstance(protocol, FewShot) else self.probe_labels(split, model, refitted)
        return self.measured(protocol.score(model, fit, test, seed))

    def measured(self, score: Score) -> Score:
        """The score by the task's metric, where it has one of its own."""
        return score

    def probe_labels(self, split: Split, model: Trained, refitted: bool) -> LabelledSubset:
        """The labels that a probe on the model may be fitted on: all of the budget, but for a model that learnt from a part of
        them that same part, so that the probe is the model's own.
        """
        return split.labelled if model.uses_labels and not refitted else split.budget()

    def classifier(self, model: Trained, split: Split, seed: int) -> nn.Module | None:
        """The predictor to export, images -> logits over the task's classes; None where classes are not fixed."""
        return model.predictor

    def describe(self, split: Split) -> str:
        """The division, for a dry run: one line or several."""
        return data_line(split)

    @abstractmethod
    def facts(self, split: Split) -> Facts:
        """What the verdict and the report say of the division."""

    def share_of_refit(self, split: Split) -> float:
        """Cost of a refit training relative to a configuration's training in the search."""
        return 1 / len(self.divisions(split))


NO_REFIT = (
    "selection.refit_seeds is for finalists that are trained on the whole budget, got {} where none are (refit: false, or"
    " few-shot without cross_validate); leave it out"
)


def paired_units(score: Score) -> np.ndarray | None:
    """A score's units in the order of what was asked, so that any two trials pair unit by unit."""
    units = score.units()
    if units is None:
        return None
    order = np.argsort(score.index)
    return units[order].astype(np.float32) if score.correct is None else score.correct[order]


def named(given: str | Mapping[str, Any] | None, default: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a protocol as it is written in a study. Raises UserError where it is neither."""
    if given is None or isinstance(given, str):
        return given or default, {}
    if len(given) != 1:
        raise UserError(f"protocol must be a name or one name with its settings, got {dict(given)!r}")
    ((name, settings),) = given.items()
    if not isinstance(settings, Mapping | None):
        raise UserError(f"protocol {name} takes settings as a mapping, got {settings!r}")
    return str(name), dict(settings or {})


def data_line(split: Split, folds: str = "") -> str:
    """``data: ...``: the sizes of the parts, with ``folds`` after the validation part."""
    c, h, w = split.train.images.shape
    return (
        f"data: {len(split.train)} training images of {c}x{h}x{w}, {len(split.labelled)} labels to train on, "
        f"{len(split.validation)} to validate{folds}, "
        f"{len(split.test) if split.test else 'no'} test images{' (held out)' if split.holdout else ''}"
    )


def luck(drawn: Sequence[str]) -> str:
    """The sentence on what the spread over seeds does not include; blank where nothing was drawn."""
    return f"The spread over seeds does not include the luck of {' and '.join(drawn)}." if drawn else ""


@functools.cache
def _adapters(kind: type[Task]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    settings = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {f.name: TypeAdapter(hints[f.name], config=ConfigDict(strict=True)) for f in settings}
