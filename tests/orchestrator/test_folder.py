"""The run folder as keys: made once, opened anywhere, refused in one line; and a storage without a path, end to end."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cluster.plan import ResourcePlan
from cluster.storage import LocalStorage, MissingKey, Storage, StorageError
from methods.data.records import Split
from methods.world import World
from orchestrator import Result
from orchestrator.engine import events, records
from orchestrator.engine.events import (
    FORMAT,
    Chosen,
    Ended,
    Event,
    Reached,
    Scored,
    SegmentStarted,
    Selected,
    Started,
    Trained,
    TrialStarted,
)
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Segment, SlotSetup, TrialSpec
from orchestrator.engine.selection import Division
from orchestrator.engine.trial import SegmentRun
from orchestrator.finish import draw_best, write_outputs
from orchestrator.folder import RunFolder, load_tensors, save_tensors
from orchestrator.oneshot import one_shot
from orchestrator.outputs.export import export_best
from orchestrator.outputs.leaderboard import finalists
from orchestrator.outputs.tensorboard import TensorBoardSink
from orchestrator.predict import predict
from orchestrator.prepare import Prepared
from orchestrator.study import Study, StudyError

STUDY = Study(
    data="digits", methods=["supervised"], trials=1, epochs=1, epoch_images=16, encoder="conv4", precision="fp32", name="mine"
)
PLAN = ResourcePlan(1, 1.0, 0.0, 1, 1, 1.0, 0.0, 1)


@dataclasses.dataclass(frozen=True)
class Elsewhere(Storage):
    """A storage that gives no path away."""

    inside: LocalStorage

    @property
    def address(self) -> str:
        return "elsewhere://run"

    def get(self, key: str) -> bytes:
        return self.inside.get(key)

    def put(self, key: str, value: bytes | memoryview) -> None:
        self.inside.put(key, value)

    def put_if_absent(self, key: str, value: bytes | memoryview) -> bool:
        return self.inside.put_if_absent(key, value)

    def list(self, prefix: str = "") -> list[str]:
        return self.inside.list(prefix)

    def delete(self, key: str) -> None:
        self.inside.delete(key)

    def hold(self, key: str) -> AbstractContextManager[None]:
        return self.inside.hold(key)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(LocalStorage(tmp_path / "elsewhere"))


def test_a_run_folder_in_any_storage_is_made_once(tmp_path: Path, elsewhere: Elsewhere) -> None:
    for target, name in ((tmp_path / "run", str(tmp_path / "run")), (elsewhere, "elsewhere://run")):
        with pytest.raises(StudyError, match=f"{name} is not a run folder: it has no study.yaml"):
            RunFolder.open(target)
        RunFolder.check(target)
        folder = RunFolder.create(target, STUDY)
        assert folder.storage.list() == ["study.yaml"]
        assert RunFolder.open(target).load_study() == STUDY
        for call in (lambda target=target: RunFolder.check(target), lambda target=target: RunFolder.create(target, STUDY)):
            with pytest.raises(StudyError, match=f"{name} exists already"):
                call()


def test_an_empty_folder_is_in_the_way_too(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="exists already"):
        RunFolder.check(tmp_path)


def test_a_study_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match=r"study.yaml cannot be written .* No space"):
            RunFolder.create(tmp_path / "run", STUDY)
    assert list(tmp_path.iterdir()) == []
    RunFolder.create(tmp_path / "run", STUDY)


def test_only_a_local_folder_has_a_path(tmp_path: Path, elsewhere: Elsewhere) -> None:
    assert RunFolder.create(tmp_path / "run", STUDY).path == tmp_path / "run"
    with pytest.raises(StudyError, match=r"^elsewhere://run is no folder of this machine"):
        _ = RunFolder(elsewhere).path


def test_a_folder_of_an_older_format_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", STUDY)
    folder.write_text("journal.jsonl", "")
    with pytest.raises(StudyError, match=r"format 2 or older \(journal.jsonl\), .* reads format 4; run the study anew") as told:
        RunFolder.open(tmp_path / "run")
    assert "\n" not in str(told.value)


def test_a_spoilt_study_is_told_by_its_place(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", STUDY)
    folder.write_text(folder.STUDY, "- a list")
    with pytest.raises(StudyError, match=f"{tmp_path}/run/study.yaml must hold a mapping"):
        folder.load_study()
    folder.storage.put(folder.STUDY, b"\xff")
    with pytest.raises(StudyError, match=r"study.yaml cannot be read: .*utf-8"):
        folder.load_study()


def test_tensors_come_back_and_code_does_not(elsewhere: Elsewhere) -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "epoch": 3, "names": ["a"]}
    save_tensors(elsewhere, "trials/0/checkpoint.pt", state)
    found = load_tensors(elsewhere, "trials/0/checkpoint.pt", "cpu")
    assert torch.equal(found.pop("w"), state["w"])
    assert found == {"epoch": 3, "names": ["a"]}
    with pytest.raises(MissingKey, match="checkpoint-2"):
        load_tensors(elsewhere, "trials/0/checkpoint-2.pt", "cpu")
    save_tensors(elsewhere, "x", {"path": Path("/")})
    with pytest.raises(pickle.UnpicklingError):
        load_tensors(elsewhere, "x", "cpu")


EndedStudy = tuple[Prepared, SlotSetup, RunFolder, History]


@pytest.fixture
def ended(make_split: Callable[..., Split], elsewhere: Elsewhere) -> EndedStudy:
    """A study of one trial, retrained and chosen, whose run folder lies elsewhere."""
    split = make_split(4, 8, 4, 12)
    folder = RunFolder.create(elsewhere, STUDY)
    prepared = Prepared(STUDY, STUDY.task_object(), STUDY.scoring(), STUDY.catalogue(), split, STUDY.space(), Division(), 0.0)
    setup = prepared.setup(elsewhere, PLAN)
    history = History()
    sink = TensorBoardSink(folder, STUDY)

    def tell(*told: Event) -> None:
        for event in told:
            history.add(event)
            sink(event, history)

    tell(Started(FORMAT, 1, {"labelwise": "0"}))
    for spec in (
        TrialSpec("0000", 0, "supervised", {"batch_size": 16}, 0),
        TrialSpec("0000-fold-0", 0, "supervised", {"batch_size": 16}, 0, "fold"),
    ):
        segment = Segment(spec.key, prepared.top)
        run = SegmentRun(setup, World())
        run.begin(Assignment(spec, segment))
        said = run.advance()
        assert said.rung is not None, said.reason
        assert said.checkpoint == f"trials/{spec.key}/checkpoint-1.pt"
        tell(TrialStarted(spec), SegmentStarted(segment))
        tell(Trained(spec.key, 1, 1.0, dict(said.parts)), Scored(spec.key, said.rung, segment.to))
        tell(Reached(spec.key, said.done, said.checkpoint), Ended(spec.key, "finished", ""))
    tell(Selected([0]), Chosen(0, "0000-fold-0"), events.Tested(records.TestScore("0000-fold-0", 0, 0.5, 16, 0.3, 0.7)))
    sink.close()
    return prepared, setup, folder, history


def test_a_study_elsewhere_is_written_and_read_by_keys_alone(ended: EndedStudy, elsewhere: Elsewhere, tmp_path: Path) -> None:
    prepared, setup, folder, history = ended
    split = prepared.split
    write_outputs(prepared, folder, history)
    assert Result.open(elsewhere).best is None
    export_best(finalists(history)[0], setup, folder)
    assert draw_best(setup, split, folder, history)
    kinds = {key.split("/")[0] for key in elsewhere.list()}
    outputs = {"leaderboard.csv", "optuna.db", "report.html", "study.yaml", "verdict.txt"}
    assert kinds == {"best", "gallery", "tensorboard", "trials", *outputs}

    best = Result.open(elsewhere).winner()
    assert (best.method, best.classifies, best.test.scores) == ("supervised", True, (0.5,))
    with pytest.raises(StudyError, match="no folder of this machine"):
        _ = best.folder
    images = split.train.images.take(torch.arange(5))
    with torch.no_grad():
        label = best.load_predictor()(images).argmax(1)
    for row, image in enumerate(images):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()).save(
            tmp_path / "images" / f"{row}.png"
        )
    said = predict(elsewhere, tmp_path / "images")
    assert list(said["class"]) == [best.classes[k] for k in label.tolist()]
    assert best.load_encoder()(images).shape[0] == 5
    with pytest.raises(ValueError, match="runs"):
        one_shot(elsewhere, tmp_path / "images")


def test_a_winner_without_its_scores_is_none(ended: EndedStudy, elsewhere: Elsewhere) -> None:
    """The marker is gone before the first file of another winner is written, and comes back last."""
    _, setup, folder, history = ended
    order: list[str] = []

    class Watched(Elsewhere):
        def put(self, key: str, value: bytes | memoryview) -> None:
            order.append(key)
            super().put(key, value)

        def delete(self, key: str) -> None:
            order.append(f"-{key}")
            super().delete(key)

    watched = RunFolder(Watched(elsewhere.inside))
    export_best(finalists(history)[0], setup, watched)
    assert (order[0], order[-1]) == ("-best/scores.json", "best/scores.json")
    folder.write_text("best/stale.pt", "of another winner")
    order.clear()
    export_best(finalists(history)[0], setup, watched)
    assert (order[0], order[-1]) == ("-best/scores.json", "best/scores.json")
    assert not folder.exists("best/stale.pt")
    folder.storage.delete("best/scores.json")
    with pytest.raises(StudyError, match="elsewhere://run has no winner yet"):
        predict(elsewhere, "images")


def test_columns_of_a_leaderboard_elsewhere(ended: EndedStudy, elsewhere: Elsewhere, tmp_path: Path) -> None:
    prepared, _, folder, history = ended
    write_outputs(prepared, folder, history)
    frame = pd.read_csv(tmp_path / "elsewhere" / "leaderboard.csv")
    assert len(frame) == 1
    assert np.isclose(frame["test_mean"][0], 0.5)
