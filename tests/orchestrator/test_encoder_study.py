"""Whole studies that compare encoders, on a real local Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml

import orchestrator.features as features_module
from cluster.connect import connect
from methods.parts.encoders import EncoderSpec, build_encoder, load_encoder, save_encoder
from orchestrator import Study, resume, run
from orchestrator.dry import dry_run
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.features import read_index
from orchestrator.result import read_leaderboard
from orchestrator.study import StudyError
from orchestrator.train import train
from search_spaces.domains import UserError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module", autouse=True)
def _ray():
    """One local Ray for the module; ``run`` finds it."""
    with connect("local", cpus=2):
        yield


def written(path: Path, name: str, shape: tuple[int, int, int] = SHAPE, weights: float = 1.0) -> Path:
    """An exported encoder; with ``weights`` 0 it embeds every image alike."""
    torch.manual_seed(3)
    mean, std = (0.3,) * shape[0], (0.3,) * shape[0]
    encoder = build_encoder(EncoderSpec(name), shape, mean, std)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(weights)
    save_encoder(path, encoder)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A useless encoder, and one whose features tell digits apart."""
    folder = tmp_path_factory.mktemp("encoders")
    return str(written(folder / "blind.pt", "conv4", weights=0.0)), str(written(folder / "seeing.pt", "conv4_pyramid"))


def study_of(encoders: list[str], **fields: Any) -> Study:
    return Study(
        **{
            **{"data": "digits", "size": 12, "labels": 60, "epoch_images": 64, "epochs": 2, "trials": 6, "slots": 1},
            **{"methods": ["linear_probe", "supervised"], "search": {"supervised.batch_size": 16}},
            **{"selection": {"top": 2, "seeds": 1}, "encoder": encoders, **fields},
        }
    )


@pytest.fixture(scope="module")
def compared(files: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    blind, seeing = files
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWISE_CACHE", str(folder / "cache"))
        return run(study_of([blind, seeing, "resnet_small"]), folder / "run")


def test_the_first_trials_and_the_winner(compared: Any, files: tuple[str, str]) -> None:
    blind, seeing = files
    history = History(read_journal(compared.storage))
    first = [(t.spec.method, t.spec.encoder, t.spec.origin) for t in history.search()][:4]
    assert first[:2] == [("linear_probe", blind, "defaults"), ("supervised", blind, "defaults")]
    assert {(label, origin) for _, label, origin in first[2:]} == {(seeing, "defaults"), ("resnet_small", "defaults")}
    assert all(t.spec.encoder != "resnet_small" for t in history.search() if t.spec.method == "linear_probe")
    frame = compared.leaderboard()
    assert set(frame["status"]) <= {"finished", "pruned"}
    assert frame["method"][0] == "linear_probe"
    assert frame["encoder"][0] == seeing, "the other has nothing to tell classes by"
    assert frame["val"][frame["encoder"] == blind].max() < frame["val"][0]


def test_the_winner_is_judged_refitted_and_exported_with_its_encoder(compared: Any, files: tuple[str, str]) -> None:
    _, seeing = files
    history = History(read_journal(compared.storage))
    number = history.chosen.trial  # type: ignore[union-attr]
    trainings = [t for t in history.trials.values() if t.spec.trial == number]
    assert {t.spec.purpose for t in trainings} >= {"search", "fold", "refit"}
    assert {t.spec.encoder for t in trainings} == {seeing}
    config = yaml.safe_load((compared.folder / "best" / "config.yaml").read_text())
    assert config["encoder"] == {"label": seeing, "name": seeing, "weights": seeing, "views": ["image"]}
    assert compared.best.choice == seeing
    theirs, ours = load_encoder(seeing).state_dict(), compared.best.load_encoder().state_dict()
    ours = {name.removeprefix("inside."): value for name, value in ours.items()}
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items() if not name.startswith("normalise."))
    assert compared.best.test.mean > 0.4


def test_the_cache_and_the_run_folder_hold_the_features_of_both(compared: Any, files: tuple[str, str]) -> None:
    tables = {table.asked.name: table for table in read_index(compared.storage)}
    assert set(tables) == set(files), "resnet_small begins from nothing: nobody asks for its features"
    pools = [np.load(compared.folder / tables[name].pool) for name in files]
    assert pools[0].shape[2] != pools[1].shape[2]
    assert np.ptp(pools[0].astype(np.float32), axis=0).max() == 0 < np.ptp(pools[1].astype(np.float32), axis=0).max()
    cached = {path.name for path in (compared.folder.parent / "cache" / "features").iterdir()}
    assert cached == {Path(key).name for table in tables.values() for key in (table.pool, table.test)}


def test_a_resumed_comparison_goes_on_with_the_same_encoders(
    compared: Any, monkeypatch: pytest.MonkeyPatch, files: tuple[str, str]
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("what lies in the run folder is embedded no more")

    before = compared.leaderboard()
    monkeypatch.setattr(features_module, "embed_views", never)
    more = resume(compared.folder, trials=8)
    after = more.leaderboard().set_index("trial")
    assert len(after) == 8
    assert list(after.loc[before["trial"], "encoder"]) == list(before["encoder"])
    assert set(after["encoder"]) <= {*files, "resnet_small"}


def test_leaderboard_report_tensorboard_and_optuna_tell_the_encoder(compared: Any, files: tuple[str, str]) -> None:
    blind, seeing = files
    csv = pd.read_csv(compared.folder / "leaderboard.csv")
    assert list(csv.columns).index("encoder") == list(csv.columns).index("tested") + 1
    assert list(read_leaderboard(compared.folder).columns) == list(csv.columns)
    report = (compared.folder / "report.html").read_text()
    assert "3 encoders compared" in report
    assert "<h2>Encoders</h2>" in report
    assert f"encoder={seeing}" in report
    verdict = (compared.folder / "verdict.txt").read_text()
    assert f"Winner: linear_probe with {seeing} (trial" in verdict
    assert "The search's best validation score by encoder: " in verdict
    stored = optuna.load_study(study_name="study", storage=f"sqlite:///{compared.folder / 'optuna.db'}")
    drawn = [{t.params.get("encoder"), t.params.get(f"encoder@{blind}|{seeing}")} - {None} for t in stored.trials]
    assert drawn == [{label} for label in csv.sort_values("trial")["encoder"]]
    raw = b"".join(path.read_bytes() for path in (compared.folder / "tensorboard").glob("0002/*"))
    assert csv.set_index("trial")["encoder"][2].encode() in raw


def test_a_dry_run_tells_what_each_costs(files: tuple[str, str], tmp_path: Path) -> None:
    said = dry_run(study_of([files[1], "resnet_small"]), tmp_path / "run")
    assert f"linear_probe with {files[1]}: about" in said
    assert "linear_probe with resnet_small" not in said
    assert "supervised with resnet_small: about" in said


def test_the_winner_is_trained_again_with_its_encoder(compared: Any, files: tuple[str, str], tmp_path: Path) -> None:
    out = train(compared.folder, True, 1, tmp_path / "again")
    assert load_encoder(out / "encoder.pt").state_dict().keys() >= {"normalise.mean"}
    assert str(files[1]) in load_encoder(out / "encoder.pt").origin


@pytest.mark.long
def test_pretrained_against_from_nothing(files: tuple[str, str], tmp_path: Path) -> None:
    study = study_of(["conv4_pyramid"], init=["none", files[1]], methods=["supervised"], trials=3)
    frame = run(study, tmp_path / "run").leaderboard()
    assert set(frame["encoder"]) == {"conv4_pyramid", f"conv4_pyramid from {files[1]}"}


@pytest.mark.parametrize(
    ("encoders", "fields", "match"),
    [
        (["COLOUR", "conv4"], {}, "does not fit this architecture: of other shape"),
        (
            ["conv4", "resnet_small"],
            {"init": ["none", "SEEING"], "methods": ["supervised"]},
            "holds weights of encoder conv4_pyramid, got",
        ),
        (["README.md", "conv4"], {}, "README.md is not a file of weights"),
        (["SEEING", "conv4"], {"encoder_size": 48}, "encoder conv4_pyramid sees images as large as they are, got size 48"),
    ],
)
def test_what_cannot_be_built_is_refused_before_a_run_folder_is_made(
    encoders: list[str], fields: dict[str, Any], match: str, files: tuple[str, str], tmp_path: Path
) -> None:
    places = {"COLOUR": str(written(tmp_path / "colour.pt", "conv4", (3, 12, 12))), "SEEING": files[1]}
    fields = {key: [places.get(v, v) for v in value] if key == "init" else value for key, value in fields.items()}
    with pytest.raises((UserError, StudyError), match=match) as error:
        run(study_of([places.get(name, name) for name in encoders], **fields), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_method_that_cannot_use_an_encoder_fails_that_trial_in_one_line(tmp_path: Path) -> None:
    study = study_of(
        ["conv4", "torchvision/mobilenet_v3_small"],
        **{
            "init": "none",
            "methods": ["noisy_student"],
            "trials": 2,
            "epochs": 1,
            "search": {"*.batch_size": 16, "*.student_width": 0.5},
        },
    )
    frame = run(study, tmp_path / "run").leaderboard().set_index("encoder")
    failed = frame.loc["torchvision/mobilenet_v3_small from none"]
    assert failed["status"] == "failed"
    assert "comes in one width, got width 0.5" in failed["reason"]
    assert json.loads((tmp_path / "run" / "best" / "scores.json").read_text())["trial"] == 0
