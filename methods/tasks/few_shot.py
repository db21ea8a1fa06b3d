"""Few-shot learning: N-way K-shot episodes on classes that training never sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from methods.batch import EpisodeShape
from methods.contracts import Method
from methods.data import budget, episodic
from methods.data.episodic import NO_TEST
from methods.data.records import LabelledSubset, Source, Split
from methods.protocols import FewShot, protocol
from methods.protocols.contract import Protocol, Trained
from methods.tasks.contract import NO_REFIT, UNITS, Facts, Task, data_line, luck, named
from search_spaces.domains import UserError

DRAWINGS = 20
"""Images a class, up to which groups of classes (alphabets) are taken to be meant for episodes: Omniglot's number."""


@dataclass(frozen=True)
class FewShotTask(Task):
    """The few-shot task: N-way K-shot episodes on classes that training never sees.

    Attributes:
        ways, shots, queries: of an evaluation episode.
        episodes: evaluation episodes, the same for every method.
        within_group: every episode's classes come from one group (alphabet).
        hold_out: whether validation (and, without a test set, test) classes are held out by class or by whole
            group; None for groups where there are at least three.
        validation: share of the classes or groups that is held out for validation, where the data sets none apart itself.
        cross_validate: each group is held out for validation in turn. A configuration's score is the mean over the folds,
            which multiply the time; the winner is refitted on all groups for the test and the exported model.
        test_groups: only these groups of the test set are used.
        rotations: rotations by 90 degrees become classes of their own in training.
    """

    name: ClassVar[str] = "few_shot"
    default_protocol: ClassVar[str] = "few_shot"
    ways: Annotated[int, Field(ge=2)] = 5
    shots: Annotated[int, Field(ge=1)] = 1
    queries: Annotated[int, Field(ge=1)] = 15
    episodes: Annotated[int, Field(ge=2)] = 600
    within_group: bool = False
    hold_out: Literal["class", "group"] | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    cross_validate: bool = False
    test_groups: tuple[str, ...] = ()
    rotations: bool = False

    def protocol(self, given: str | Mapping[str, Any] | None = None) -> Protocol:
        """Episodes of the task's shape; settings that are given go before it."""
        name, settings = named(given, self.default_protocol)
        if name == FewShot.name:
            shape = ("ways", "shots", "queries", "episodes", "within_group")
            settings = {**{field: getattr(self, field) for field in shape}, **settings}
        return protocol(name, **settings)

    def check(self, protocol: Protocol, test: object = None) -> None:
        budget.check_test(test)
        if not isinstance(protocol, FewShot):
            raise UserError(
                f"task few_shot has new classes to be told apart from few images, which protocol few_shot scores, got "
                f"{protocol.name}; leave protocol out"
            )
        if self.cross_validate and self.hold_out == "class":
            raise UserError("few_shot.cross_validate leaves out whole groups, got hold_out: class; leave one of them out")

    def check_selection(self, refit: bool, refit_seeds: int | None, join: bool) -> None:
        if refit_seeds is not None and not (refit and self.cross_validate):
            raise UserError(NO_REFIT.format(refit_seeds))
        if self.cross_validate and not refit:
            raise UserError(
                "few_shot.cross_validate needs selection.refit: true, since every fold's model lacks a group, got false"
            )

    def divide(self, source: Source, test: float | Source | Literal["none"] | None, protocol: Protocol, seed: int) -> Split:
        """The division by class, in which every part that is asked holds the protocol's episodes."""
        self.check(protocol, test)
        assert isinstance(protocol, FewShot), "any other was refused above"
        shape = EpisodeShape(1, protocol.ways, protocol.shots, protocol.queries, protocol.within_group)
        split = episodic.split_few_shot(
            source,
            test=None if isinstance(test, float) else test,
            test_groups=self.test_groups,
            by=self.hold_out,
            test_share=test if isinstance(test, float) else episodic.SHARE,
            validation_share=self.validation,
            cross_validate=shape if self.cross_validate else None,
            rotations=self.rotations,
            seed=seed,
        )
        # Found out now, and not when the first trial has been trained.
        parts = [("validation", each.validation) for each in split.divisions()] + ([("test", split.test)] if split.test else [])
        left_out = [name for what, part in parts for name in _too_small(what, part, shape)]
        return dataclasses.replace(split, left_out=tuple(left_out))

    def refits(self, split: Split, method: Method) -> bool:
        """After a cross-validation every method is trained once more, for all groups; parts are otherwise never joined."""
        return bool(split.folds)

    def probe_labels(self, split: Split, model: Trained, refitted: bool) -> LabelledSubset:
        """Those of the training classes: others are new to the model by intent."""
        return split.labelled

    def classifier(self, model: Trained, split: Split, seed: int) -> nn.Module | None:
        """None, even where the method has a classifier of the training classes: those are not the ones that matter here."""
        return None

    def describe(self, split: Split) -> str:
        lines = [data_line(split, f" ({len(split.folds)} groups in turn)" if split.folds else "")]
        if split.left_out:
            lines.append(f"left out: {', '.join(split.left_out)} have too few images for the episodes")
        return "\n".join(lines)

    def facts(self, split: Split) -> Facts:
        folds = len(split.folds)
        in_turn = f"{folds} groups left out in turn"
        drawn = ["which classes validated"] * (not folds) + ["which classes were held out"] * split.holdout
        setting = f"{self.ways}-way {self.shots}-shot on classes that training never saw"
        return Facts(
            setting=f"{setting}, {in_turn}" if folds else setting,
            units={**UNITS, "folds": "episodes"},
            asked=dict.fromkeys(UNITS, "episodes"),
            folds=f", each the mean over {in_turn}" if folds else "",
            taken="held out from your data" if split.holdout else "your test set",
            no_test=f"No test was made (test: {NO_TEST}). The validation score chose the winner, so for new classes it is "
            "optimistic.",
            exported="The exported encoder was trained without the classes that validated.",
            refitted="The exported model was trained on all groups.",
            left_out=f"{len(split.left_out)} class(es) have too few images for the episodes and were not asked, first "
            f"{split.left_out[0]}."
            if split.left_out
            else "",
            luck=luck(drawn),
        )

    def share_of_refit(self, split: Split) -> float:
        return 1 / len(split.folds) if split.folds else 0


def laid_out_for_episodes(source: Source) -> bool:
    """Whether the data is laid out for new classes: its own validation or test classes are others than those of training, or
    its classes, of few images each, lie in groups.
    """
    data = source.train
    if source.validation:
        return True
    if source.test is not None and len(source.test.classes) and not set(source.test.classes) & set(data.classes):
        return True
    known = data.label >= 0
    if data.group is None or not known.any():
        return False
    pairs = np.unique(np.stack([data.label[known], data.group[known]]), axis=1)
    nested = len(np.unique(pairs[0])) == pairs.shape[1] and len(np.unique(pairs[1])) < pairs.shape[1]
    return bool(nested and np.median(np.bincount(data.label[known])) <= DRAWINGS)


def _too_small(part: str, asked: LabelledSubset, shape: EpisodeShape) -> list[str]:
    """Names of the part's classes that are too small for the episodes. Raises UserError where it holds no episode."""
    try:
        sampler = episodic.EpisodeSampler(asked.label, asked.groups(), shape, 0)
    except UserError as error:
        raise UserError(f"{part}: {error}") from None
    return [asked.data.classes[k] for k in sampler.left_out]
