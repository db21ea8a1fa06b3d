"""The command line and the catalogue for programs: help, the stable JSON, and a person's mistakes in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from cluster.connect import Connection
from cluster.machine import Node
from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.training.clock import Fidelity
from orchestrator import cli as cli_module
from orchestrator.describe import catalogue_json, markdown_table, span
from orchestrator.engine.events import FORMAT, Chosen, Ended, Extended, Scored, Started, TrialStarted
from orchestrator.engine.journal import Journal
from orchestrator.engine.records import Rung, TrialSpec
from orchestrator.folder import RunFolder
from orchestrator.outputs.board import board
from orchestrator.outputs.leaderboard import COLUMNS
from orchestrator.study import Study
from search_spaces.domains import SWITCH, Choice, Float, Int

COMMANDS = (
    *("run", "resume", "leaderboard", "report", "predict", "oneshot", "methods", "train", "submit", "schema", "journal"),
    *("doctor", "export", "check"),
)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """cli(*words): exit code, out and err of the command; starting Ray fails the test."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("Ray must not start here")

    for module in ("run", "dry", "train"):
        __import__(f"orchestrator.{module}")
        monkeypatch.setattr(sys.modules[f"orchestrator.{module}"], "connect", never)

    def call(*words: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["labelwise", *map(str, words)])
        code: Any = 0
        try:
            cli_module.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def refused(found: SimpleNamespace, *words: str) -> None:
    assert found.code == 2
    assert found.out == ""
    assert found.err.startswith("labelwise: ")
    assert len(found.err.splitlines()) == 1, found.err
    assert all(word in found.err for word in words), found.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli: Callable[..., SimpleNamespace], command: str) -> None:
    found = cli(command, "--help")
    assert found.code == 0
    assert f"Example: labelwise {command} " in " ".join(found.out.split()) + " "
    assert found.err == ""


def test_the_commands_are_these(cli: Callable[..., SimpleNamespace]) -> None:
    found = cli("--help")
    assert found.code == 0
    assert all(f" {command} " in found.out for command in COMMANDS)
    assert {c.name or c.callback.__name__ for c in cli_module.app.registered_commands} == set(COMMANDS)  # type: ignore[union-attr]


def test_methods_json_is_the_stable_interface(cli: Callable[..., SimpleNamespace]) -> None:
    found = cli("methods", "--json")
    assert found.code == 0
    listed = json.loads(found.out)
    assert [m["name"] for m in listed] == list(CATALOGUE)
    for entry in listed:
        assert list(entry) == ["name", "family", "paper", "knobs"]
        declared = CATALOGUE[entry["name"]].knobs()
        assert [k["name"] for k in entry["knobs"]] == list(declared)
        for k in entry["knobs"]:
            assert list(k) == ["name", "type", "default", "legal", "search", "scale", "choices", "unit", "doc", "source"]
            item = declared[k["name"]]
            assert k["type"] in ("float", "int", "bool", "choice")
            assert k["default"] == item.default
            assert k["scale"] in ("linear", "log", "log1m", "categorical")
            assert (k["choices"] is not None) == isinstance(item.legal, Choice)
            assert k["doc"]
            assert (k["search"] is None) == (item.search is None)
            if k["choices"] is None:
                assert k["legal"][0] <= k["default"] <= k["legal"][1]
            else:
                assert k["default"] in k["legal"] == k["choices"]
    (one,) = json.loads(cli("methods", "simclr", "--json").out)
    assert one == next(m for m in listed if m["name"] == "simclr")
    assert catalogue_json([CATALOGUE["simclr"]]) == [one]


def test_methods_for_people(cli: Callable[..., SimpleNamespace]) -> None:
    found = cli("methods")
    assert found.code == 0
    assert all(name in found.out for name in CATALOGUE)
    knobs = cli("methods", "simclr").out
    assert all(name in knobs for name in CATALOGUE["simclr"].knobs())
    refused(cli("methods", "simclt"), "simclt", "did you mean simclr?")
    table = markdown_table(CATALOGUE.values()).splitlines()
    assert len(table) == 2 + len(CATALOGUE)
    assert all(line.count("|") == table[0].count("|") for line in table)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (None, "fixed"),
        (Float(0, 1), "0 .. 1"),
        (Float(0.1, 1, log=True), "0.1 .. 1, log"),
        (Float(0.9, 0.99, log1m=True), "0.9 .. 0.99, log1m"),
        (Int(1, 3), "1 .. 3"),
        (Int(32, 64, power_of_two=True), "32 .. 64, powers of 2"),
        (Choice(("a", "b")), "a, b"),
        (SWITCH, "true, false"),
    ],
)
def test_domains_in_a_few_characters(domain: Any, words: str) -> None:
    assert span(domain) == words


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 20 images."""
    for k, name in enumerate(("cat", "dog")):
        for i in range(20):
            picture(tmp_path / "data" / name / f"{i}.png", 100 * k + i)
    return tmp_path / "data"


def study(tmp_path: Path, data: Path, **more: Any) -> Path:
    file = tmp_path / "study.yaml"
    fields = {"data": str(data), "methods": ["supervised"], "trials": 1, "epochs": 1, **more}
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()), encoding="utf-8")
    return file


def test_an_empty_folder(cli: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    refused(cli("run", study(tmp_path, tmp_path / "data"), "--out", tmp_path / "out"), str(tmp_path / "data"))
    assert not (tmp_path / "out").exists()


def test_no_such_folder(cli: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    refused(cli("run", study(tmp_path, tmp_path / "nowhere"), "--out", tmp_path / "out"), "nowhere")


def test_a_corrupt_image_is_named(cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path) -> None:
    (folder / "cat" / "torn.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:60])
    refused(cli("run", study(tmp_path, folder), "--out", tmp_path / "out"), "torn.png")


def test_one_class(cli: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "data" / "cat" / f"{i}.png", i)
    refused(cli("run", study(tmp_path, tmp_path / "data"), "--out", tmp_path / "out"), "2 classes", "cat")


def test_fewer_images_than_the_budget(cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path) -> None:
    refused(cli("run", study(tmp_path, folder, labels=400), "--out", tmp_path / "out"), "labels", "got 400")


def test_too_few_labels_per_class(cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path) -> None:
    refused(cli("run", study(tmp_path, folder, labels=3), "--out", tmp_path / "out"), "labels", "2 classes", "got 3")


def test_a_class_too_small_to_validate(cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path) -> None:
    picture(folder / "emu" / "0.png", 7)
    refused(cli("run", study(tmp_path, folder), "--out", tmp_path / "out"), "emu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "methods=[simclt]"), ("simclt", "did you mean simclr?")),
        (("--set", "trails=3"), ("trails", "did you mean trials?")),
        (("--set", "trials=0"), ("trials", "got 0")),
        (("--set", "methods=[simclr, mae]"), ("number of methods, 2", "got 1")),
        (("--set", "search.supervised.lr=1e9"), ("search.supervised.lr", "1000000000")),
        (("--set", "trials"), ("key=value",)),
    ],
)
def test_a_bad_study(
    cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    file = study(tmp_path, folder)
    for command in (("run",), ("run", "--dry-run")):
        refused(cli(command[0], file, "--out", tmp_path / "out", *command[1:], *words), *said)
    refused(cli("submit", file, "--address", "http://127.0.0.1:1", *words), *said)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, file])


def test_code_in_a_study_is_refused_and_does_not_run(cli: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(f"data: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    refused(cli("run", tmp_path / "bad.yaml", "--out", tmp_path / "out"), "must be plain YAML", "line 1")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_an_existing_output_is_left_as_it_is(cli: Callable[..., SimpleNamespace], tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    for more in ((), ("--dry-run",)):
        refused(cli("run", study(tmp_path, folder), "--out", tmp_path / "out", *more), "exists already", "--out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    refused(cli("train", study(tmp_path, folder), "--best", "--out", tmp_path / "out"), "exists already")


def test_an_unwritable_output_leaves_nothing(
    cli: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    connection = Connection("local", "found", (Node(1.0, 0.0, 2**30),))
    monkeypatch.setattr(sys.modules["orchestrator.run"], "connect", lambda address: connection)
    (tmp_path / "file").write_text("no folder")
    file = study(tmp_path, folder)
    before = sorted(tmp_path.rglob("*"))
    refused(cli("run", file, "--out", tmp_path / "file" / "out"), "cannot be made", "--out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [("resume",), ("leaderboard",), ("report",), ("predict", "images"), ("oneshot", "runs"), ("journal",)]
)
def test_what_is_no_run_folder(cli: Callable[..., SimpleNamespace], tmp_path: Path, words: tuple[str, ...]) -> None:
    for where in (tmp_path, tmp_path / "nowhere"):
        refused(cli(words[0], where, *words[1:]), "is not a run folder", str(where))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def begun(tmp_path: Path, folder: Path) -> Path:
    """A run folder whose study was stopped after a trial."""
    run = RunFolder.create(tmp_path / "run", Study(data=str(folder), methods=["supervised", "simclr"], trials=4))
    journal = Journal(run.storage)
    journal.write(Started(FORMAT, 4, {}))
    journal.write(TrialStarted(TrialSpec("0000", 0, "supervised", {"lr": 0.01}, 1)))
    journal.write(Scored("0000", Rung(10, 0.75, 20, 0.6, 0.9, "validation", None, 0.1), Fidelity("epochs", 10)))
    journal.write(Ended("0000", "finished", ""))
    journal.write(TrialStarted(TrialSpec("0001", 1, "simclr", {"temperature": 0.2}, 1)))
    journal.close()
    return run.path


def test_the_leaderboard_of_an_unfinished_study(cli: Callable[..., SimpleNamespace], begun: Path) -> None:
    rows = json.loads(cli("leaderboard", begun, "--json").out)
    assert [(r["rank"], r["trial"], r["method"], r["status"], r["val"]) for r in rows] == [
        (1, 0, "supervised", "finished", 0.75),
        (2, 1, "simclr", "running", None),
    ]
    assert list(rows[0])[: len(COLUMNS)] == list(COLUMNS)
    assert (rows[0]["supervised.lr"], rows[0]["simclr.temperature"]) == (0.01, None)
    found = cli("leaderboard", begun)
    assert found.code == 0
    assert "75.0%" in found.out


def test_a_verdict_is_told_while_its_winner_stands(cli: Callable[..., SimpleNamespace], begun: Path) -> None:
    """More trials reopen the choice, and the file still tells of the last one."""
    (begun / "verdict.txt").write_text("Winner: supervised.\n")
    assert "Winner" not in cli("leaderboard", begun).out
    journal = Journal(LocalStorage(begun))
    journal.write(Chosen(0, "0000"))
    journal.close()
    assert "Winner: supervised." in cli("leaderboard", begun).out
    journal = Journal(LocalStorage(begun))
    journal.write(Extended(8))
    journal.close()
    assert "Winner" not in cli("leaderboard", begun).out


def test_what_a_begun_study_refuses(cli: Callable[..., SimpleNamespace], begun: Path, folder: Path) -> None:
    part = begun / "journal" / "000000.jsonl"
    before = part.read_bytes()
    refused(cli("resume", begun, "--trials", 3), "at least 4", "got 3")
    refused(cli("predict", begun, folder), "no winner yet", "labelwise resume")
    refused(cli("oneshot", begun, folder), "no winner yet", "labelwise resume")
    refused(cli("train", begun, "--best", "--out", begun.parent / "t"), "no winner yet")
    other = Journal(LocalStorage(begun))
    refused(cli("resume", begun), "being written by another run")
    other.close()
    assert part.read_bytes() == before
    lines = before.splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:2], b"damage\n", *lines[2:]]))
    refused(cli("leaderboard", begun), "damaged at line 3")
    refused(cli("resume", begun), "damaged at line 3")


def test_mistakes_in_the_command_itself(cli: Callable[..., SimpleNamespace]) -> None:
    for words in (("run",), ("run", "demo", "--nonsense"), ("nonsense",), ("resume", "x", "--trials", "many")):
        found = cli(*words)
        assert found.code == 2
        assert "Traceback" not in found.err
        assert found.err


def test_the_process_ends_with_one_line_and_a_code(tmp_path: Path) -> None:
    """The real command in a process of its own, from another folder."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "nothing.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("labelwise: there is no study nothing.yaml; give a study file")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_board_has_the_encoder_in_a_line_of_its_own_and_stays_within_80_columns() -> None:
    row = dict.fromkeys(COLUMNS) | {"rank": 1, "trial": 12, "status": "pruned", "epochs": 10, "seconds": 123.4, "val": 0.876}
    row |= {"method": "entropy_minimization", "test_mean": 0.8, "test_sd": 0.01, "test_n": 3}
    long = "/a/very/long/path/to/a/file/of/pretrained/weights.pt"
    frame = pd.DataFrame([{**row, "encoder": "lite0 from none"}, {**row, "encoder": long}])
    console = Console(width=80, file=io.StringIO())
    console.print(board(frame))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines[2::2]] == ["lite0 from none", f"…{long[-20:]}"]
    assert lines[1].split()[:3] == ["1", "12", "entropy_minimization"]
    assert "80.0% ± 1.0 (3)" in lines[1]
