"""The fields of a study's task: what is to be learned, and from which labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema, field_validator

from methods.protocols.metrics import MetricName
from methods.tasks import TASKS, Classification, FewShotTask, Task, task
from orchestrator.study.extensions import Extension, in_python, left_behind
from orchestrator.study.fields import Strict, StudyError, lost
from orchestrator.study.shapes import choice_schema

ORDER = ("labels", "validation", "imbalance", "mismatch", "keep_groups", "metric", "task", FewShotTask.name)
"""The fields as a person reads them."""

CLASSIFICATION = {
    "validation": "set few_shot.validation",
    "imbalance": "leave it out",
    "mismatch": "leave it out",
    "keep_groups": "set few_shot.hold_out: group",
    "metric": "leave it out",
}
"""Fields of classification alone, with what a few-shot study does instead."""


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
        metric: what validates, chooses and is tested: ``accuracy``, ``balanced_accuracy`` (every class weighs the same) or
            ``macro_f1``.
    """

    labels: int | Literal["all"] = "all"
    validation: float | None = None
    imbalance: float = 1.0
    mismatch: float | None = None
    task: Annotated[Any, WithJsonSchema(choice_schema(list(TASKS)))] = "classification"
    few_shot: FewShotTask = FewShotTask()
    keep_groups: bool = False
    metric: MetricName = "accuracy"

    @field_validator("few_shot", mode="before")
    @classmethod
    def _settings(cls, value: object) -> object:
        if isinstance(value, FewShotTask):
            return value
        if not isinstance(value, Mapping | None):
            raise ValueError("must be a mapping such as {ways: 5, shots: 1}")
        return task(FewShotTask.name, **(value or {}))

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: object) -> object:
        names = " or ".join(repr(name) for name in TASKS)
        if isinstance(value, str) and value not in (*TASKS, in_python("task")):
            raise ValueError(f"input should be {names}")
        if not isinstance(value, str | Extension | Task):
            raise ValueError(f"input should be {names} or, in Python, a Task of your own")
        return value

    def task_object(self) -> Task:
        """The study's task. Its settings stand under its own name (``few_shot: {...}``), or are fields of the study itself.

        Raises:
            StudyError: code of one's own does not take its settings, or an object stayed behind in a script.
        """
        if left_behind("task", self.task):
            raise StudyError(lost("task"))
        if isinstance(self.task, Extension):
            made: Task = self.task.made()
            return made
        if not isinstance(self.task, str):
            own: Task = self.task
            return own
        kind = TASKS[self.task]
        block = getattr(self, kind.name, None)
        if block is not None:
            return block
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind)})  # type: ignore[arg-type]

    def task_is_open(self) -> bool:
        """Whether no field says, by itself or by what it belongs to, which task is meant."""
        return not self.model_fields_set & {"task", "labels", *CLASSIFICATION}

    def plain_task(self) -> Any:
        """``task`` for a run folder."""
        if isinstance(self.task, Extension):
            return self.task.plain()
        return self.task if isinstance(self.task, str) else in_python("task")

    def check_task(self, task: Task) -> None:
        """Raises StudyError where fields of another task are given."""
        if not isinstance(task, Classification):
            for field, remedy in CLASSIFICATION.items():
                value = getattr(self, field)
                if value != type(self).model_fields[field].default:
                    raise StudyError(f"{field} belongs to task classification, got {value} for {task.name}; {remedy}")
        if self.few_shot.cross_validate and not isinstance(task, FewShotTask):
            raise StudyError(f"few_shot.cross_validate is for task: few_shot, got {task.name}; set the task or leave it out")
