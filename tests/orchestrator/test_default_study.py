"""A study without methods: completed from its data, kept as it was completed, and run from images alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import orchestrator.default_study as module
import orchestrator.dry as dry_module
from cluster.connect import Connection, connect
from cluster.machine import Node
from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.data.records import ArrayImages, ImageSet, Source
from methods.data.sources import load
from methods.tasks import task_for
from orchestrator import cli as cli_module
from orchestrator import resume
from orchestrator.engine.events import Proposed, decode, encode
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.prepare import prepare
from orchestrator.study import Study, StudyError, load_study


def draw(folder: Path, classes: int = 3, each: int = 20, unlabelled: int = 0) -> Path:
    """Class folders of small images, whose brightness tells the class."""
    rng = np.random.default_rng(0)
    for k in range(classes):
        for i in range(each):
            place = folder / f"class{k}" / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(70 * k, 70 * k + 80, (16, 16, 3), dtype=np.uint8)).save(place)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("data") / "shades")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: Node(2.0))


@pytest.mark.usefixtures("two_cores")
def test_the_encoder_with_weights_is_compared_where_it_is_installed(images: Path) -> None:
    study = load_study(images, ["labels=24"])
    assert (study.name, study.data, study.methods, study.budget.minutes) == ("shades", str(images), None, 10)
    split = study.task_object().divide(load(str(images)), None, study.scoring(), 0)
    with_weights, told = module.completed(study, split, installed=True)
    assert told is not None
    assert with_weights.encoder == ("resnet_small", "lite0")
    assert with_weights.seconds == 60
    offered = with_weights.offered(with_weights.catalogue())
    assert offered["linear_probe"] == offered["bitfit"] == ("lite0",)
    assert offered["supervised"] == ("resnet_small", "lite0")
    without, told = module.completed(study, split, installed=False)
    assert told is not None
    assert without.encoder == "resnet_small"
    assert not any(CATALOGUE[name].family == "adapt" for name in without.method_names)
    assert any("pip install 'labelwise[lite0]'" in note for note in told.notes)
    # What the study says itself stays.
    own, _ = module.completed(study.completed(encoder="conv4", epochs=3), split, installed=True)
    assert (own.encoder, own.epochs, own.seconds) == ("conv4", 3, None)
    tiny, _ = module.completed(study.completed(budget={"trials": 1}), split, installed=True)
    assert (tiny.method_names, tiny.encoder) == (["supervised"], "resnet_small")


@pytest.mark.parametrize(
    ("fields", "seconds", "trials"),
    [
        ({}, 600, None),
        ({"budget": {"minutes": 30}}, 1800, None),
        ({"budget": {"cpu_hours": 1}}, 1800, None),
        ({"budget": {"gpu_hours": 1}}, None, None),
        ({"budget": {"minutes": 30, "trials": 9}}, 1800, 9),
        ({"trials": 9, "encoder": ["conv4", "resnet_small"]}, None, 8),
        ({"budget": {"epochs": 50}}, None, 5),
        ({"budget": {"labels": 10}}, None, 16),
    ],
    ids=str,
)
@pytest.mark.usefixtures("two_cores")
def test_the_budget_as_time_and_as_trials(
    fields: dict[str, Any], seconds: float | None, trials: int | None, split: Any
) -> None:
    found = module.situation_of(Study(data="digits", **fields), split)
    assert (found.seconds, found.trials, found.slots) == (seconds, trials, 2)
    assert (found.images, found.labels, found.channels) == (len(split.train), len(split.labelled) + len(split.validation), 3)


def set_of(classes: int, each: int, group: Any = None, first: int = 0) -> ImageSet:
    label = np.repeat(np.arange(classes), each)
    array = np.zeros((len(label), 8, 8, 1), np.uint8)
    names = tuple(f"c{first + k}" for k in range(classes))
    return ImageSet(ArrayImages(array), label, names, None if group is None else group(label), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("source", "episodes"),
    [
        (Source(set_of(4, 30)), False),
        (Source(set_of(4, 30), set_of(4, 5)), False),
        (Source(set_of(4, 30), validation=("c3",)), True),
        (Source(set_of(4, 30), set_of(4, 5, first=9)), True),
        (Source(set_of(9, 20, lambda label: label // 3)), True),
        # Many images a class, a class in several groups (scanners), and a group for each class are no alphabets.
        (Source(set_of(9, 60, lambda label: label // 3)), False),
        (Source(set_of(9, 20, lambda label: np.arange(len(label)) % 3)), False),
        (Source(set_of(3, 20, lambda label: label)), False),
    ],
)
def test_the_task_follows_the_layout_of_the_data(source: Source, episodes: bool) -> None:
    assert (task_for(source) == "few_shot") == episodes
    study = Study(data="digits")
    assert module.with_task(study, source).task == task_for(source)
    for said in ({"methods": ["simclr"]}, {"labels": 40}, {"task": "classification"}, {"metric": "macro_f1"}):
        assert module.with_task(study.completed(**said), source).task == "classification"


def test_a_study_on_images_is_called_after_them(tmp_path: Path) -> None:
    (tmp_path / "v1.5").mkdir()
    (tmp_path / "few.zip").touch()
    assert [load_study(each).name for each in (tmp_path / "v1.5", tmp_path / "few.zip", "digits")] == ["v1.5", "few", "digits"]
    study = load_study("digits", ["budget.minutes=30", "labels=100"])
    assert (study.budget.minutes, study.labels, study.trials) == (30, 100, None)


def test_the_event_survives_the_journal() -> None:
    event = Proposed({"linear_probe": "why"}, {"seconds": 75.0, "encoder": ["a", "b"]}, ["a note"], time=1.0)
    assert decode(encode(event).encode()) == event
    assert event.lines() == ["linear_probe  why", "a note"]


def test_a_study_in_python_goes_on_with_what_was_proposed() -> None:
    event = Proposed({"linear_probe": "why"}, {"seconds": 75.0, "encoder": ["resnet_small", "lite0"], "task": "classification"})
    study = Study(data="digits", encoder="lite0")
    found = module.again(study, event)
    assert (found.method_names, found.seconds, found.encoder) == (["linear_probe"], 75, "lite0")
    assert module.again(found, Proposed({"simclr": "why"}, {})) is found
    assert module.again(study, None) is study


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """cli(*words): exit code, out and err of the command."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["labelwise", *map(str, words)])
        code: Any = 0
        try:
            cli_module.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_what_is_neither_study_nor_images(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (9, 9)).save(flat / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "study.yaml").write_text("data: digits")
    for given, *words in (
        ("nowhere", "a study file (YAML)", "a ready-made study (", "or images"),
        (flat, "one folder a class or a labels.csv"),
        (tmp_path / "empty", "must hold images", "holds nothing"),
        (tmp_path / "old", "is a run folder", "labelwise resume"),
    ):
        code, out, err = cli("run", given, "--out", tmp_path / "out")
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert all(word in err for word in words), err
    code, _, err = cli("submit", flat, "--address", "http://127.0.0.1:1")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "submit sends a study file" in err
    assert not (tmp_path / "out").exists()


def test_train_takes_a_method_that_is_named(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("data: digits\n")
    code, _, err = cli("train", tmp_path / "study.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "names none; add methods" in err


def test_a_dry_run_says_why(
    cli: Callable[..., tuple[int, str, str]], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection("local", "found", (Node(2.0),))
    monkeypatch.setattr(dry_module, "connect", lambda address: connection)
    code, out, err = cli("run", images, "--dry-run", "--out", tmp_path / "out", "--set", "encoder=conv4", "--set", "labels=24")
    assert (code, err) == (0, "")
    assert "supervised" in out
    assert "the baseline: 24 labels alone, from nothing" in out


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with connect("local", cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_folder_of_images_is_a_study(
    cli: Callable[..., tuple[int, str, str]], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("labels=24", "trials=4", "epochs=1", "epoch_images=32", "encoder=conv4", "slots=1", "search.*.batch_size=8")
    code, _, err = cli("run", images, *(word for each in settings for word in ("--set", each)))
    assert code == 0, err
    run = Path("runs") / "shades"
    written = yaml.safe_load((run / "study.yaml").read_text())
    assert written["methods"] == ["supervised", "mixmatch"]
    why = "the baseline: 24 labels alone, from nothing"
    history = History(read_journal(LocalStorage(run)))
    assert history.proposed is not None
    assert history.proposed.methods["supervised"] == why
    assert why in err
    assert why in (run / "report.html").read_text()

    def never(*_: object) -> None:
        raise AssertionError("a resumed study proposes nothing anew")

    monkeypatch.setattr(module, "propose", never)
    assert len(resume(run, trials=5).leaderboard()) == 5
    again = Study(**{**written, "methods": None})
    assert set(resume(run, trials=6, study=again).leaderboard()["method"]) == {"supervised", "mixmatch"}
    with pytest.raises(AssertionError, match="nothing anew"):
        prepare(again)


def test_a_study_needs_a_method_for_a_space() -> None:
    with pytest.raises((StudyError, ValueError), match="at least one method"):
        Study(data="digits").space()
