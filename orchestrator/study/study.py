"""A study: data, label budget, methods, search, compute budget and protocol. Written as YAML or in Python, checked strictly."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, field_validator, model_validator

from methods.protocols.contract import Protocol
from orchestrator.study.budget import BudgetFields
from orchestrator.study.data import DataFields
from orchestrator.study.extensions import Allowed, left_behind, replaced
from orchestrator.study.fields import StudyError, one_line, plain
from orchestrator.study.health import HealthFields
from orchestrator.study.machine import MachineFields
from orchestrator.study.search import CHOICES, SearchFields
from orchestrator.study.selection import IN_PYTHON, SelectionFields
from orchestrator.study.task import ORDER as TASK_ORDER
from orchestrator.study.task import TaskFields

ORDER = (
    *("data", "test", *TASK_ORDER),
    *(
        "methods",
        "encoder",
        "vit_encoder",
        "encoder_size",
        "init",
        "trials",
        "budget",
        "epochs",
        "seconds",
        "epoch_images",
        "strategy",
        "reduction",
        "allocation",
        "sampler",
    ),
    *("selection", "limit", "stop", "search", "protocol", "objective", "seed", "size", "on_bad_image"),
    *("workers", "slots", "address", "precision", "out", "name", "earlier"),
)
"""The fields as a person reads them: the order of a resolved study, and of which mistake is told first."""


BLANK = ("search", "selection", "limit", "stop")
"""Fields that a heading without lines leaves at their default."""


class Study(MachineFields, HealthFields, SelectionFields, BudgetFields, SearchFields, TaskFields, DataFields):
    """Everything a study is. Any field may be given in YAML under the same name; each is declared by its owner.

    What one owner alone can check stands there; here stands what joins several.
    """

    def __init__(self, /, **values: Any) -> None:
        try:
            # Without leave nothing is imported: code of one's own comes as objects, or through ``load_study``.
            super().__init__(**replaced(values, Allowed()))
        except ValidationError as error:
            raise StudyError(one_line(error, type(self), ORDER)) from None

    @field_validator(*BLANK, mode="before")
    @classmethod
    def _blank(cls, value: object, info: Any) -> object:
        """A heading whose lines are all commented out says nothing."""
        return cls.model_fields[info.field_name].get_default(call_default_factory=True) if value is None else value

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        self.check_methods()
        self.check_budget(self.method_names)
        self.check_encoders(self.catalogue())
        if not left_behind("task", self.task):
            task = self.task_object()
            self.check_task(task)
            chosen = self.selection
            if not left_behind("protocol", self.protocol):
                task.check(self.scoring(), self.test)
                self.check_ensemble(self.scoring())
            task.check_selection(chosen.refit, chosen.refit_seeds, chosen.join)
        if self.methods is not None:
            self.check_baseline(self.method_names)
        self.check_stop()
        if self.methods is not None:
            self.check_first_trials(self.space().first_trials)
        return self

    def completed(self, **fields: Any) -> Study:
        """The study with further fields, checked as a whole; what was given stays as it was given."""
        return Study(**{**{name: getattr(self, name) for name in self.model_fields_set}, **fields})

    def gives(self, *fields: str) -> bool:
        """Whether any of these fields was given, be it at its default."""
        return bool(self.model_fields_set & set(fields))

    def scoring(self) -> Protocol:
        """The protocol, with its settings. Raises StudyError on an unknown name or setting."""
        return self.scoring_of(self.task_object)

    def check_objective(self) -> None:
        """Raises StudyError where the search would maximise an error, or where something of Python stayed behind in a script.

        Not part of the study's own checks: a run folder holds no objects, and its study must still be read from there.
        """
        for field in CHOICES:
            self.choice(field)
        self.encoders()
        self.budget.objects()
        self.task_object()
        if self.objective == IN_PYTHON:
            raise StudyError(
                "this study's objective is a function that its run folder cannot hold; go on with it from the script that has"
                " it, by resume(DIR, study=study)"
            )
        scoring = self.scoring()
        if not scoring.maximise and self.objective is None:
            raise StudyError(
                f"protocol {scoring.name} gives an error, which the search would maximise; give another protocol or, in Python,"
                " an objective such as lambda score: -score.value"
            )

    def resolved(self) -> dict[str, Any]:
        """The study with every default written out, as plain values for YAML."""
        dump = {
            **self.model_dump(
                exclude={"objective", "methods", "search", "data", "encoder", "budget", "task", "protocol", *CHOICES}
            ),
            "objective": None if self.objective is None else IN_PYTHON,
            "methods": self.plain_methods(),
            "encoder": self.plain_encoder(),
            "search": self.plain_search(),
            "data": self.plain_data(),
            **{field: self.plain_choice(field) for field in CHOICES},
            "budget": self.budget.plain(),
            "task": self.plain_task(),
            "protocol": self.plain_protocol(),
        }
        if self.seconds is not None:
            dump["epochs"] = None
        return plain({name: dump[name] for name in ORDER})
