"""What a study may spend: trials beside other budgets, as a mapping, as objects, and from settings."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from orchestrator.budgets import Budget
from orchestrator.folder import dump_study
from orchestrator.study import Spending, Study, StudyError, load_study

BASE: dict[str, Any] = {"data": "digits", "methods": ["simclr", "mae"]}


@dataclass(frozen=True)
class Joules(Budget):
    name: ClassVar[str] = "joules"
    amount: float

    def spent(self, history: object, resources: object) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("fields", "trials", "amounts"),
    [
        ({}, 16, {"trials": 16}),
        ({"trials": 8}, 8, {"trials": 8}),
        ({"budget": {"trials": 8}}, 8, {"trials": 8}),
        ({"trials": 8, "budget": {"trials": 8, "minutes": 5}}, 8, {"trials": 8, "minutes": 5}),
        ({"trials": 8, "budget": {"minutes": 5}}, 8, {"trials": 8, "minutes": 5}),
        ({"budget": {"minutes": 0.5}}, None, {"minutes": 0.5}),
        ({"budget": {}}, 16, {"trials": 16}),
        ({"budget": None, "trials": None}, 16, {"trials": 16}),
        ({"budget": {"minutes": None}}, 16, {"trials": 16}),
        ({"budget": {"epochs": 200, "cpu_hours": 2, "gpu_hours": 1, "labels": 250}}, None,
         {"epochs": 200, "cpu_hours": 2, "gpu_hours": 1, "labels": 250}),
        ({"budget": Spending(minutes=3)}, None, {"minutes": 3}),
    ],
)  # fmt: skip
def test_trials_are_one_budget_and_the_default_of_none(
    fields: dict[str, Any], trials: int | None, amounts: dict[str, float]
) -> None:
    study = Study(**BASE, **fields)
    assert study.trials == trials
    assert study.budget.amounts() == amounts
    assert study.budget.objects() == ()
    again = Study(**yaml.safe_load(dump_study(study)))
    assert again == study
    assert pickle.loads(pickle.dumps(study)) == study  # noqa: S301


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trials": 8, "budget": {"trials": 16}}, ["trials and budget.trials must agree, got 8 and 16; give one"]),
        ({"budget": {"minutes": 0}}, ["budget.minutes", "greater than 0", "got 0"]),
        ({"budget": {"trials": 0}}, ["budget.trials", "greater than or equal to 1", "got 0"]),
        ({"budget": {"trials": 8.0}}, ["budget.trials", "integer", "got 8.0"]),
        ({"budget": {"labels": 2.5}}, ["budget.labels", "integer", "got 2.5"]),
        ({"budget": {"labels": 0}}, ["budget.labels", "got 0"]),
        ({"budget": {"cpu_hours": -1}}, ["budget.cpu_hours", "got -1"]),
        ({"budget": {"gpu_hours": float("inf")}}, ["budget.gpu_hours", "finite", "got inf"]),
        ({"budget": {"minutes": True}}, ["budget.minutes", "number", "got True"]),
        ({"budget": {"minuts": 5}}, ["budget.minuts is not a field", "did you mean minutes?"]),
        ({"budget": 3}, ["budget", "got 3"]),
        ({"budget": [3]}, ["budget.own", "a Budget of your own", "got (3,)"]),
        ({"budget": [{"minutes": 1}, {"minutes": 2}]}, ["budget must give minutes once, got 1 and 2"]),
        ({"trials": 1}, ["trials must be at least the number of methods, 2", "got 1"]),
        ({"budget": {"trials": 1, "minutes": 5}}, ["trials must be at least the number of methods, 2", "got 1"]),
    ],
)
def test_a_bad_budget_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        Study(**BASE, **fields)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_budgets_of_python_stand_beside_the_mapping() -> None:
    mine = Joules(3.0)
    study = Study(**BASE, budget=[mine, {"minutes": 5, "trials": 4}])
    assert (study.trials, study.budget.amounts(), study.budget.objects()) == (4, {"trials": 4, "minutes": 5}, (mine,))
    assert Study(**BASE, budget=mine).budget.objects() == (mine,)
    assert Study(**BASE, budget=[mine]).trials is None


def test_a_budget_that_stayed_in_its_script_is_asked_for() -> None:
    plain = yaml.safe_load(dump_study(Study(**BASE, budget=[Joules(3.0), {"minutes": 5}])))
    assert plain["budget"] == {"minutes": 5, "own": "(a budget given in Python)"}
    kept = Study(**plain)
    assert kept.budget.amounts() == {"minutes": 5}
    with pytest.raises(StudyError, match=r"this study's budget was given in Python.* resume\(DIR, study=study\)"):
        kept.check_objective()


@pytest.mark.parametrize(
    ("text", "settings", "trials", "amounts"),
    [
        ("", ["budget.minutes=5"], None, {"minutes": 5}),
        ("trials: 8", ["budget.minutes=5"], 8, {"trials": 8, "minutes": 5}),
        ("trials: 8", ["budget.trials=4"], 4, {"trials": 4}),
        ("budget: {trials: 8, minutes: 5}", ["trials=4"], 4, {"trials": 4, "minutes": 5}),
        ("trials: 8", ["budget={trials: 4, minutes: 5}"], 4, {"trials": 4, "minutes": 5}),
        ("trials: 8", ["budget.trials=4", "trials=6"], 6, {"trials": 6}),
        ("budget:", ["trials=4"], 4, {"trials": 4}),
    ],
)
def test_a_setting_replaces_what_the_file_says(
    tmp_path: Path, text: str, settings: list[str], trials: int | None, amounts: dict[str, float]
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"data: digits\nmethods: [simclr]\n{text}\n", encoding="utf-8")
    study = load_study(path, settings)
    assert (study.trials, study.budget.amounts()) == (trials, amounts)
