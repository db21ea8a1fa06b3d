"""Classification: a label budget over fixed classes, some of it set apart to validate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import nn

from methods.contracts import Method
from methods.data import budget, folding
from methods.data.episodic import NO_TEST
from methods.data.records import IntArray, Source, Split, TrainData
from methods.protocols import PROTOCOLS
from methods.protocols.contract import Protocol, Score, Trained
from methods.protocols.metrics import MetricName, measured
from methods.tasks.contract import UNITS, Facts, ScoredOn, Task, data_line, luck
from search_spaces.domains import UserError

ASKED: Mapping[ScoredOn, str] = {scored_on: "episodes" if unit == "episodes" else "images" for scored_on, unit in UNITS.items()}


@dataclass(frozen=True)
class Classification(Task):
    """Fixed classes, learnt from few labels; see ``methods.data.budget`` for how they are drawn.

    Attributes:
        labels: how many labels the study may use, validation included, or ``all`` that the data has.
        validation: share of the labels that validates, at most half; None for half below 500 labels, a fifth from there on.
        imbalance: labels of the most frequent class over those of the rarest, 1 or more; needs a number of labels.
        mismatch: share, 0 to 0.75, of the unlabelled pool that is of other classes than the task's; needs a number of
            labels. Even 0 makes 60% of the classes the task, to be compared with; None leaves pool and classes alone.
        keep_groups: no group (patient, scene, video) and no exact copy of an image stands on both sides of a division.
        metric: what validates, chooses and is tested.
    """

    name: ClassVar[str] = "classification"
    labels: int | Literal["all"] = "all"
    validation: float | None = None
    imbalance: float = 1.0
    mismatch: float | None = None
    keep_groups: bool = False
    metric: MetricName = "accuracy"

    def check(self, protocol: Protocol, test: object = None) -> None:
        budget.check(self.labels, test, self.validation, self.imbalance, self.mismatch, self.keep_groups)
        if self.metric != "accuracy" and not protocol.answers:
            raise UserError(
                f"metric must be accuracy with protocol {protocol.name}, which keeps no answers, got {self.metric}; use predict"
            )
        if test == NO_TEST:
            raise UserError(f"test: {NO_TEST} is for task: few_shot, got {self.name}; leave test out for a holdout")

    def divide(self, source: Source, test: float | Source | Literal["none"] | None, protocol: Protocol, seed: int) -> Split:
        self.check(protocol, test)
        assert not isinstance(test, str), "a test of none was refused above"
        return budget.split(
            source,
            labels=self.labels,
            test=test,
            validation=self.validation,
            imbalance=self.imbalance,
            mismatch=self.mismatch,
            keep_groups=self.keep_groups,
            seed=seed,
        )

    def divisions(self, split: Split) -> tuple[Split, ...]:
        return (folding.without_judging_groups(split),)

    def shares_pool(self, split: Split) -> bool:
        return split.unit is None

    def fold_counts(self, split: Split) -> tuple[int, ...]:
        return folding.fold_counts(split)

    def folds(self, split: Split, count: int, seed: int) -> tuple[Split, ...]:
        return folding.folds_of(split, count, seed)

    def measured(self, score: Score) -> Score:
        return measured(score, self.metric)

    def final_data(self, split: Split) -> TrainData:
        """The training data with the validation labels shown too."""
        label = split.train.label.copy()
        whole = split.budget()
        label[whole.index] = whole.label
        return budget.relabelled(split.train, split.labelled.data, label)

    def truth(self, split: Split, data: TrainData) -> IntArray | None:
        whole = split.budget()
        label = np.full(len(whole.data), -1, dtype=np.int64)
        label[whole.index] = whole.label
        label = label if data.position is None else label[data.position]
        label[data.label >= 0] = -1
        return label if (label >= 0).any() else None

    def refits(self, split: Split, method: Method) -> bool:
        # Without the groups that judged it, a training that reads no label has not seen the whole pool either.
        return method.reads_labels(split.train) or not self.shares_pool(split)

    def classifier(self, model: Trained, split: Split, seed: int) -> nn.Module | None:
        """The method's own classifier, else a linear probe on the whole budget."""
        if model.predictor is not None:
            return model.predictor
        return PROTOCOLS["linear"]().score(model, split.budget(), None, seed).predictor

    def describe(self, split: Split) -> str:
        return data_line(split) + self._realism(split)

    def _realism(self, split: Split) -> str:
        """What makes the labels and the pool unlike a balanced, clean benchmark, with the figures that were drawn."""
        said = []
        if self.imbalance > 1:
            count = np.bincount(split.budget().label)
            said.append(f"labels imbalanced, {count.max()} of the most frequent class and {count.min()} of the rarest")
        if self.mismatch is not None:
            said.append(
                f"{split.train.classes} classes are the task ({', '.join(split.labelled.data.classes)}) and "
                f"{self.mismatch:.0%} of the unlabelled images are of others"
            )
        return "".join(f"; {each}" for each in said)

    def facts(self, split: Split) -> Facts:
        return Facts(
            setting=f"{len(split.labelled)} labels to train on and {len(split.validation)} to validate, "
            f"of {split.train.classes} classes",
            units=UNITS,
            asked=ASKED,
            folds="",
            taken="held out from your data" if split.holdout else "your test set",
            no_test="",
            exported="The exported encoder learnt nothing from the labels that judged it; a probe on it may use all labels.",
            refitted="The exported model was trained on the whole label budget, validation labels included.",
            left_out="",
            luck=luck(["which images were labelled"]),
            labels=len(split.budget()),
        )
