"""Code of one's own by name: taken where its module is allowed, refused in one line elsewhere, never imported unasked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from methods.tasks import Task
from orchestrator.folder import RunFolder, dump_study
from orchestrator.study import Study, StudyError, load_study

CODE = """
import dataclasses
from pathlib import Path
from typing import ClassVar

from methods.catalogue import CATALOGUE
from methods.protocols import Predict
from methods.protocols.contract import Protocol
from methods.tasks import Classification, Task
from orchestrator.budgets import Budget
from orchestrator.strategies import Strategy

Path("imported").write_text("yes")

mine = dataclasses.replace(CATALOGUE["supervised"], name="mine")


@dataclasses.dataclass(frozen=True)
class RoundRobin(Strategy):
    turns: int = 1

    def next(self, problem, history):
        return None


ready = RoundRobin(7)


@dataclasses.dataclass(frozen=True)
class Joules(Budget):
    name: ClassVar[str] = "joules"
    amount: float

    def spent(self, history, resources):
        return 0.0


@dataclasses.dataclass(frozen=True)
class Ordinal(Task):
    name: ClassVar[str] = "ordinal"

    def divide(self, source, test, protocol, seed):
        return Classification().divide(source, test, protocol, seed)

    def facts(self, split):
        return Classification().facts(split)


@dataclasses.dataclass(frozen=True)
class Plainer(Predict):
    name: ClassVar[str] = "plainer"


class Half(Protocol):
    pass


number = 3
"""


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with a module ``own_rules``; ``imported`` appears there when that is imported."""
    (tmp_path / "own_rules.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "own_broken.py").write_text("x = 1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for module in ("own_rules", "own_broken"):
        sys.modules.pop(module, None)


def written(folder: Path, text: str) -> Path:
    file = folder / "s.yaml"
    file.write_text(f"data: digits\n{text}\n", encoding="utf-8")
    return file


def test_every_kind_is_loaded_where_it_is_allowed(rules: Path) -> None:
    text = (
        "methods: ['own_rules:mine', simclr]\n"
        "strategy: {'own_rules:RoundRobin': {turns: 2}}\n"
        "budget: {minutes: 5, 'own_rules:Joules': 60.0}\n"
        "task: own_rules:Ordinal\n"
        "protocol: own_rules:Plainer\n"
    )
    study = load_study(written(rules, text), imports=["own_rules"])
    assert study.method_names == ["mine", "simclr"]
    assert study.catalogue()["mine"].name == "mine"
    assert study.strategy_choice().turns == 2
    assert [type(b).__name__ for b in study.budget.objects()] == ["Joules"]
    assert (study.budget.objects()[0].amount, study.budget.amounts(), study.trials) == (60.0, {"minutes": 5}, None)
    assert type(study.task_object()).__name__ == "Ordinal"
    assert study.scoring().name == "plainer"
    study.check_objective()

    plain = yaml.safe_load(dump_study(study))
    assert plain["methods"] == ["own_rules:mine", "simclr"]
    assert plain["strategy"] == {"own_rules:RoundRobin": {"turns": 2}}
    assert plain["budget"] == {"minutes": 5, "own_rules:Joules": 60.0}
    assert (plain["task"], plain["protocol"]) == ("own_rules:Ordinal", "own_rules:Plainer")


def test_a_list_of_budgets_may_name_ones_own(rules: Path) -> None:
    study = load_study(
        written(rules, "methods: [simclr]\nbudget: [{minutes: 5}, {'own_rules:Joules': 60.0}]"), imports=["own_rules"]
    )
    assert study.budget.amounts() == {"minutes": 5}
    assert [type(b).__name__ for b in study.budget.objects()] == ["Joules"]


def test_a_run_folder_asks_for_leave_again(rules: Path) -> None:
    study = load_study(written(rules, "methods: [simclr]\nstrategy: own_rules:RoundRobin"), imports=["own_rules"])
    folder = RunFolder.create(rules / "run", study)
    with pytest.raises(StudyError) as caught:
        folder.load_study()
    assert str(caught.value) == (
        "strategy: own_rules:RoundRobin is code of your own; allow it with --import own_rules on this command"
    )
    assert folder.load_study(["own_rules"]) == study


@pytest.mark.parametrize(
    "text",
    [
        "strategy: own_rules:RoundRobin",
        "strategy: {'own_rules:RoundRobin': {turns: 2}}",
        "budget: {'own_rules:Joules': 3}",
        "task: own_rules:Ordinal",
        "methods: own_rules:mine",
        "methods: [simclr, 'own_rules:mine']",
        "protocol: own_rules:Plainer",
        "protocol: {'own_rules:Plainer': {}}",
    ],
)
@pytest.mark.parametrize("imports", [(), ("own_broken",), ("own",)])
def test_nothing_is_imported_because_a_file_says_so(rules: Path, text: str, imports: tuple[str, ...]) -> None:
    file = written(rules, text)
    for read in (lambda: load_study(file, imports=imports), lambda: Study(**yaml.safe_load(file.read_text()))):
        with pytest.raises(StudyError, match=r"is code of your own; allow it with --import own_rules on this command$"):
            read()
    assert "own_rules" not in sys.modules
    assert not (rules / "imported").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("strategy: own_broken:X", ["strategy: own_broken does not import: ZeroDivisionError: division by zero"]),
        ("strategy: own_absent:X", ["strategy: own_absent does not import: ModuleNotFoundError"]),
        ("strategy: own_rules:RoundRobbin", ["strategy: own_rules has no RoundRobbin", "did you mean RoundRobin?"]),
        ("strategy: own_rules:Joules", ["own_rules:Joules is no strategy: it lacks next"]),
        ("budget: {'own_rules:number': 3}", ["own_rules:number is no budget: it lacks spent"]),
        ("task: own_rules:Joules", ["own_rules:Joules is no task: it lacks divide"]),
        ("methods: ['own_rules:number']", ["own_rules:number is no method, got an object of int", "methods.contracts.Method"]),
        ("methods: ['own_rules:RoundRobin']", ["is no method, got the class RoundRobin"]),
        ("protocol: own_rules:Half", ["own_rules:Half is no protocol: it lacks score"]),
        ("protocol: own_rules:Joules", ["own_rules:Joules is no protocol: it lacks score"]),
        ("protocol: {'own_rules:Plainer': {heed: 3}}", ["own_rules:Plainer does not take its settings", "heed"]),
        ("strategy: 'own_rules:'", ["strategy: code of your own is written module:Name, got 'own_rules:'"]),
        ("strategy: 'own rules:X'", ["written module:Name"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(rules: Path, text: str, words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(written(rules, text), imports=["own_rules", "own_broken", "own_absent"])
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_meet_the_object_when_it_is_made(rules: Path) -> None:
    bad = load_study(written(rules, "strategy: {'own_rules:RoundRobin': {turn: 2}}"), imports=["own_rules"])
    with pytest.raises(StudyError, match=r"own_rules:RoundRobin does not take its settings .*turn"):
        bad.check_objective()
    ready = load_study(written(rules, "strategy: own_rules:ready"), imports=["own_rules"])
    assert ready.strategy_choice().turns == 7
    given = load_study(written(rules, "strategy: {'own_rules:ready': {turns: 2}}"), imports=["own_rules"])
    with pytest.raises(StudyError, match="takes no settings"):
        given.strategy_choice()


def test_objects_of_python_need_no_leave_and_are_asked_for_again() -> None:
    from methods.protocols import Knn

    class Ordinal(Task):
        name = "ordinal"

        def divide(self, source: Any, test: Any, protocol: Any, seed: int) -> Any: ...

        def facts(self, split: Any) -> Any: ...

    study = Study(data="digits", methods=["simclr"], protocol=Knn(), task=Ordinal())
    assert study.scoring().name == "knn"
    plain = yaml.safe_load(dump_study(study))
    assert (plain["task"], plain["protocol"]) == ("(a task given in Python)", "(a protocol given in Python)")
    kept = Study(**plain)
    with pytest.raises(StudyError, match="this study's task was given in Python"):
        kept.check_objective()
    with pytest.raises(StudyError, match="this study's protocol was given in Python"):
        kept.scoring()
