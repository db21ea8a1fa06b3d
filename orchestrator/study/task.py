"""The fields of a study's task: what is to be learned, and from which labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from methods.data import budget
from methods.data.episodic import NO_TEST
from orchestrator.study.extensions import CONTRACTS, Extension, in_python
from orchestrator.study.fields import Strict, StudyError, listed
from orchestrator.study.shapes import choice_schema

TASKS = ("classification", "few_shot")

CLASSIFICATION = {
    "validation": "set few_shot.validation",
    "imbalance": "leave it out",
    "mismatch": "leave it out",
    "keep_groups": "set few_shot.hold_out: group",
}
"""Fields of classification alone, with what a few-shot study does instead."""


class FewShotTask(Strict):
    """The few-shot task: N-way K-shot episodes on classes that training never sees.

    Attributes:
        ways, shots, queries: of an evaluation episode.
        episodes: evaluation episodes, the same for every method.
        within_group: every episode's classes come from one group (alphabet).
        hold_out: whether validation (and, without a test set, test) classes are held out by class or by whole
            group; None for groups where there are at least three.
        validation: share of the classes or groups that is held out for validation, where the data sets none apart itself.
        cross_validate: each group is held out for validation in turn. A configuration's score is the mean over the turns,
            which multiply the time; the finalists are refitted on all groups for the test and the exported model.
        test_groups: only these groups of the test set are used.
        rotations: rotations by 90 degrees become classes of their own in training.
    """

    ways: int = Field(5, ge=2)
    shots: int = Field(1, ge=1)
    queries: int = Field(15, ge=1)
    episodes: int = Field(600, ge=2)
    within_group: bool = False
    hold_out: Literal["class", "group"] | None = None
    validation: float = Field(0.2, gt=0, lt=1)
    cross_validate: bool = False
    test_groups: tuple[str, ...] = ()
    rotations: bool = False

    _listed = field_validator("test_groups", mode="before")(listed)


class TaskFields(Strict):
    """What is to be learned, and from which labels.

    Attributes:
        labels: ``all``, or the label budget as a number: drawn class-balanced, validation labels included. Few-shot studies use
            every label of their training classes, whatever is given here.
        validation: share of the labels that validates, at most half; None for half below 500 labels, a fifth from there on.
        imbalance: labels of the most frequent class over those of the rarest, 1 or more; needs a number of labels.
        mismatch: share, 0 to 0.75, of the unlabelled pool that is of other classes than the task's; needs a number of
            labels. Even 0 makes 60% of the classes the task, to be compared with; None leaves pool and classes alone.
        task: ``classification`` or ``few_shot`` (then ``few_shot`` describes the episodes); in Python also a task of your own.
        few_shot: the episodes of a few-shot study.
        keep_groups: images of one group (patient, scene) stay on one side of every division.
    """

    labels: int | Literal["all"] = "all"
    validation: float | None = None
    imbalance: float = 1.0
    mismatch: float | None = None
    task: Annotated[Any, WithJsonSchema(choice_schema(TASKS))] = "classification"
    few_shot: FewShotTask = FewShotTask()
    keep_groups: bool = False

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: object) -> object:
        if isinstance(value, str) and value not in (*TASKS, in_python("task")):
            raise ValueError("input should be 'classification' or 'few_shot'")
        if not isinstance(value, str | Extension) and CONTRACTS["task"](value):
            raise ValueError("input should be 'classification' or 'few_shot' or, in Python, a task with a method 'divide'")
        return value

    def task_choice(self) -> Any:
        """The task's name, or the object of one's own. Raises StudyError where that does not take its settings."""
        return self.task.made() if isinstance(self.task, Extension) else self.task

    def plain_task(self) -> Any:
        """``task`` for a run folder."""
        if isinstance(self.task, Extension):
            return self.task.plain()
        return self.task if isinstance(self.task, str) else in_python("task")

    def check_task(self, test: object) -> None:
        """Raises StudyError or UserError where the labels do not fit the task, or the task not the ``test``."""
        if self.task == "few_shot":
            for field, remedy in CLASSIFICATION.items():
                value = getattr(self, field)
                if value != type(self).model_fields[field].default:
                    raise StudyError(f"{field} belongs to task classification, got {value} for few_shot; {remedy}")
        budget.check(self.labels, test, self.validation, self.imbalance, self.mismatch)
        if test == NO_TEST and self.task == "classification":
            raise StudyError(f"test: {NO_TEST} is for task: few_shot, got {self.task}; leave test out for a holdout")
