"""What is to be learned and how it is judged. ``TASKS`` lists every task by name; ``task`` builds one from its settings."""

from __future__ import annotations

import dataclasses

from methods.data.records import Source
from methods.tasks.classification import Classification
from methods.tasks.contract import UNITS, Facts, Judgement, ScoredOn, Task
from methods.tasks.few_shot import FewShotTask, laid_out_for_episodes
from search_spaces.domains import UserError, nearest

__all__ = ["TASKS", "UNITS", "Classification", "Facts", "FewShotTask", "Judgement", "ScoredOn", "Task", "task", "task_for"]

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classification, FewShotTask)}


def task(name: str, **settings: object) -> Task:
    """The task of that name with these settings, lists as tuples; the others keep their defaults.

    Raises:
        UserError: an unknown task or setting (the nearest name is offered), or a value of the wrong type or range.
    """
    if name not in TASKS:
        raise UserError(f"{name} is not a task{nearest(name, TASKS)}")
    kind = TASKS[name]
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise UserError(f"{name}.{key} is not a setting{nearest(key, known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})


def task_for(source: Source) -> str:
    """Name of the task that data is laid out for, where nobody says which one is meant."""
    return FewShotTask.name if laid_out_for_episodes(source) else Classification.name
