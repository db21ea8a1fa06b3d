"""The fields of what a study may spend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from orchestrator.budgets.contract import Budget
from orchestrator.study.extensions import Extension, in_python
from orchestrator.study.fields import Strict, StudyError, lost
from orchestrator.study.shapes import NAME

TRIALS, MINUTES = 16, 10
"""Trials of a study that names methods and no budget, and minutes of one that names neither."""


class Spending(Strict):
    """What the search may spend; the first budget that runs out ends it. None where there is no such budget.

    Attributes:
        trials: configurations that the search tries; the selection comes on top.
        epochs: trained in all.
        minutes: on the clock, from the command to its end.
        cpu_hours: hours of training and scoring, times the CPUs of a trial.
        gpu_hours: hours of training and scoring, times the GPUs of a trial.
        labels: bought during the study, beyond those known at its start.
        own: budgets of one's own: in Python ``Budget`` objects, in a study file ``module:Name: AMOUNT``.
    """

    model_config = ConfigDict(json_schema_extra={"patternProperties": {f"^{NAME}$": {}}})

    trials: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    cpu_hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    gpu_hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    labels: int | None = Field(None, ge=1)
    own: SkipJsonSchema[tuple[Any, ...]] = ()

    @field_validator("own", mode="before")
    @classmethod
    def _budgets(cls, value: object) -> object:
        several = (value,) if value == in_python("budget") else tuple(value) if isinstance(value, list | tuple) else value
        for each in several if isinstance(several, tuple) else ():
            if not isinstance(each, Extension | Budget) and each != in_python("budget"):
                raise ValueError("a budget is a mapping such as {minutes: 30} or, in Python, a Budget of your own")
        return several

    def amounts(self) -> dict[str, float]:
        """The budgets that are given, by name, without those of one's own."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "own"}
        return {name: amount for name, amount in given.items() if amount is not None}

    def objects(self) -> tuple[Any, ...]:
        """The budgets of one's own. Raises StudyError where one does not take its settings or stayed behind in a script."""
        if in_python("budget") in self.own:
            raise StudyError(lost("budget"))
        return tuple(each.made() if isinstance(each, Extension) else each for each in self.own)

    def plain(self) -> dict[str, Any]:
        """As a study file has it; ``trials`` stands in the field of that name."""
        found: dict[str, Any] = {name: amount for name, amount in self.amounts().items() if name != "trials"}
        for each in self.own:
            # An object in Python cannot be written; its place is kept.
            found |= {each.name: each.settings} if isinstance(each, Extension) else {"own": in_python("budget")}
        return found


class BudgetFields(Strict):
    """What the search may spend.

    Attributes:
        trials: configurations that the search tries; the selection comes on top. Short for ``budget: {trials: N}``; 16 where
            methods are given and no budget. A study that gives neither takes ten minutes.
        budget: what the search may spend: trials, epochs, minutes, cpu_hours, gpu_hours, labels, any of them. The first that
            runs out ends it. In Python also a list of such mappings and of budget objects.
    """

    trials: int | None = Field(None, ge=1)
    budget: Spending = Spending()

    @model_validator(mode="before")
    @classmethod
    def _one_number_of_trials(cls, raw: Any) -> Any:
        """``trials`` and ``budget.trials`` are one number, and the default counts where there is no budget."""
        budget = _merged(raw.get("budget"))
        if not isinstance(budget, Mapping):
            return {**raw, "budget": budget}
        budget = {key: amount for key, amount in budget.items() if amount is not None}
        short, full = raw.get("trials"), budget.get("trials")
        if short is not None and full is not None and short != full:
            raise StudyError(f"trials and budget.trials must agree, got {short} and {full}; give one")
        trials = full if short is None else short
        if trials is None and not budget:
            if raw.get("methods") is None:
                budget = {"minutes": MINUTES}
            else:
                trials = TRIALS
        # A number that is refused is refused where it was written.
        if type(trials) is int and trials >= 1:
            short, budget = trials, {**budget, "trials": trials}
        return {**raw, "trials": short, "budget": budget}

    def check_budget(self, methods: Sequence[str]) -> None:
        """Raises StudyError where the budget does not reach for every method once."""
        if self.trials is not None and self.trials < len(methods):
            raise StudyError(
                f"trials must be at least the number of methods, {len(methods)}, so that each is tried once, got {self.trials}"
            )

    def check_first_trials(self, needed: int) -> None:
        """Raises StudyError where the budget does not reach for every method and every further encoder once."""
        if self.trials is not None and self.trials < needed:
            raise StudyError(
                f"trials must be at least {needed}, so that each method and encoder is tried once, got {self.trials}; raise it,"
                " or name fewer of them"
            )


def _merged(budget: Any) -> Any:
    """One mapping of all budgets that are given, or the value itself where it is none."""
    if budget is None:
        return {}
    if isinstance(budget, Spending):
        return {**budget.amounts(), **({"own": budget.own} if budget.own else {})}
    if isinstance(budget, Mapping):
        return budget
    if not isinstance(budget, list | tuple):
        return {"own": (budget,)} if isinstance(budget, Budget) else budget
    found: dict[str, Any] = {}
    own: list[Any] = []
    for each in budget:
        if isinstance(each, Mapping | Spending):
            part = dict(_merged(each))
            own += part.pop("own", ())
            if doubled := next((key for key in part if key in found), None):
                raise StudyError(f"budget must give {doubled} once, got {found[doubled]} and {part[doubled]}")
            found |= part
        else:
            own.append(each)
    return {**found, "own": tuple(own)} if own else found
