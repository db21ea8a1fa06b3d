"""The strategy, and the highest rung in epochs or seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.folder import dump_study
from orchestrator.strategies import Strategy
from orchestrator.study import Study, StudyError, load_study

BASE: dict[str, Any] = {"data": "digits", "methods": ["simclr"]}


class RoundRobin(Strategy):
    def next(self, problem: object, history: object) -> None:
        return None


@pytest.mark.parametrize(
    ("strategy", "choice"),
    [
        ("asha_stopping", ("asha_stopping", {})),
        ({"hyperband": {"eta": 3}}, ("hyperband", {"eta": 3})),
        ({"hyperband": None}, ("hyperband", {})),
    ],
)
def test_a_strategy_is_a_name_with_settings(strategy: Any, choice: tuple[str, dict[str, Any]]) -> None:
    study = Study(**BASE, strategy=strategy)
    assert study.strategy_choice() == choice
    assert Study(**yaml.safe_load(dump_study(study))) == study


def test_the_default_strategy_stops_by_asha(tmp_path: Path) -> None:
    assert Study(**BASE).strategy_choice() == ("asha_stopping", {})
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nstrategy: other\n", encoding="utf-8")
    assert load_study(path, ["strategy=asha_stopping"]).strategy == "asha_stopping"


def test_a_strategy_of_python_is_taken_and_asked_for_again() -> None:
    mine = RoundRobin()
    study = Study(**BASE, strategy=mine)
    assert study.strategy_choice() is mine
    study.check_objective()
    plain = yaml.safe_load(dump_study(study))
    assert plain["strategy"] == "(a strategy given in Python)"
    kept = Study(**plain)
    for ask in (kept.strategy_choice, kept.check_objective):
        with pytest.raises(StudyError, match=r"this study's strategy was given in Python.* resume\(DIR, study=study\)"):
            ask()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": 3}, ["strategy", "a Strategy of your own", "got 3"]),
        ({"strategy": ["a"]}, ["strategy", "got ['a']"]),
        ({"strategy": {"a": {}, "b": {}}}, ["strategy must be a name or one name with its settings"]),
        ({"strategy": {"a": 3}}, ["strategy a takes settings as a mapping, got 3"]),
        ({"seconds": 0}, ["seconds", "greater than 0", "got 0"]),
        ({"seconds": "long"}, ["seconds", "number", "got 'long'"]),
        ({"seconds": 60, "epochs": 10}, ["in epochs or in seconds, got epochs 10 and seconds 60; give one"]),
        ({"keep_groups": 1}, ["keep_groups", "got 1"]),
        (
            {"keep_groups": True, "task": "few_shot"},
            ["keep_groups belongs to task classification, got True for few_shot; set few_shot.hold_out: group"],
        ),
    ],
)
def test_a_bad_field_is_refused_in_one_line(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        Study(**BASE, **fields)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("seconds", "reduction", "rungs"),
    [
        (27, 3, (1, 3, 9, 27)),
        (120, 3, (120 / 27, 120 / 9, 40, 120)),
        (0.5, 9, (0.5 / 9, 0.5)),
        (60, 1, (60,)),
        (60, 27, (60 / 27, 60)),
        (60, 28, (60,)),
        (32, 2, (2, 4, 8, 16, 32)),
    ],
)
def test_rungs_in_seconds(seconds: float, reduction: int, rungs: tuple[float, ...]) -> None:
    study = Study(**BASE, seconds=seconds, reduction=reduction)
    assert study.rungs() == rungs
    assert all(isinstance(rung, float) for rung in study.rungs())
    assert study.rungs()[-1] == seconds
    assert study.rungs()[0] >= seconds / 27


def test_seconds_stand_instead_of_epochs(tmp_path: Path) -> None:
    assert Study(**BASE).rungs()[-1] == 10
    study = Study(**BASE, seconds=60)
    plain = yaml.safe_load(dump_study(study))
    assert (plain["epochs"], plain["seconds"]) == (None, 60)
    assert Study(**plain) == study
    path = tmp_path / "s.yaml"
    path.write_text("data: digits\nmethods: [simclr]\nepochs: 5\n", encoding="utf-8")
    assert load_study(path, ["seconds=30"]).rungs()[-1] == 30
    last = load_study(path, ["seconds=30", "epochs=4"])
    assert (last.seconds, last.rungs()[-1]) == (None, 4)
