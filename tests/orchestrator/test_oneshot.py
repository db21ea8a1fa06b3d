"""A few-shot study without a test, groups left out in turn, from study to model: its folder embeds images and answers runs.

Its jobs run in this process, one after the other, in the place of Ray's slots.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cluster.connect import Connection
from cluster.machine import Node
from cluster.storage import LocalStorage
from methods.data.oneshot_runs import LABELS
from methods.data.records import ImageSet, Source
from methods.data.sources import load
from methods.data.views import select
from methods.parts.averaged import AveragedEncoder, averaged
from methods.parts.distances import similarity_logits
from methods.parts.encoders import EncoderSpec, build_encoder, load_encoder, save_encoder
from methods.parts.framed import FramedEncoder
from methods.parts.joined import JoinedEncoder
from methods.protocols.contract import mean_interval
from methods.world import World
from orchestrator import Result, Study, resume, run
from orchestrator import cli as cli_module
from orchestrator.engine.controller import Controller
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.records import SlotSetup
from orchestrator.engine.trial import SegmentRun
from orchestrator.folder import load_tensors
from orchestrator.oneshot import distance_of, one_shot
from orchestrator.predict import predict
from orchestrator.prepare import prepare
from orchestrator.study import StudyError, load_study
from orchestrator.train import train

TASK = {"ways": 50, "shots": 1, "queries": 2, "episodes": 10, "cross_validate": True}  # three scripts have 50 characters
STUDY: dict[str, Any] = {
    "data": "glyphs",
    "size": 12,
    "test": "none",
    "task": "few_shot",
    "few_shot": TASK,
    "encoder": "conv4",
    "methods": ["prototypical"],
    "trials": 2,
    "epochs": 1,
    "epoch_images": 40,
    "selection": {"top": 1, "seeds": 2, "join": True},
    "search": {"prototypical.ways": 5, "prototypical.queries": 1, "prototypical.tasks": 1, "prototypical.test_views": 3},
    "precision": "fp32",
}


def in_this_process(controller: Controller, shared: SlotSetup, plan: object) -> None:
    slot = SegmentRun(shared, World())
    while (given := controller.next_assignment()) is not None:
        slot.begin(given)
        while controller.receive(slot.advance()):
            pass


def without_ray(patch: pytest.MonkeyPatch) -> None:
    connection = Connection("local", "found", (Node(1.0, 0.0, 2**30),))
    for module in ("run", "dry", "train"):
        __import__(f"orchestrator.{module}")
        patch.setattr(sys.modules[f"orchestrator.{module}"], "connect", lambda address: connection)
    patch.setattr(sys.modules["orchestrator.run"], "run_slots", in_this_process)
    patch.setattr(
        sys.modules["orchestrator.prepare"],
        "load",
        lambda data, **how: thin_glyphs() if data == "glyphs" else load(data, **how),
    )


@functools.cache
def thin_glyphs() -> Source:
    """The embedded glyphs, read once for all tests, five images of each character."""
    data = load("glyphs", size=12).train
    order = np.argsort(data.label, kind="stable").reshape(len(data.classes), -1)
    return Source(select(data, np.sort(order[:, ::4].ravel())))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        return run(Study(**STUDY), tmp_path_factory.mktemp("oneshot") / "run")


@pytest.fixture(scope="module")
def glyphs() -> ImageSet:
    return thin_glyphs().train


def write(data: ImageSet, position: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.images.take(torch.tensor([position]))[0, 0].numpy()).save(path)


def test_each_script_of_fifty_validates_and_the_refit_sees_all(finished: Result) -> None:
    history = History(read_journal(finished.storage))
    assert sorted(t.spec.key for t in history.trials.values() if t.spec.purpose != "search") == [
        f"{history.selected[0]:04d}-{purpose}-{seed}"  # type: ignore[index]
        for purpose in ("0of1", "refit")
        for seed in range(2)
    ]
    for trial in history.trials.values():
        asked = [(r.scored_on, r.n) for r in trial.rungs]
        assert asked == ([] if trial.spec.purpose == "refit" else [("folds", 30)])
    assert history.tests == []
    best = finished.best
    assert best is not None
    scores = json.loads((best.folder / "scores.json").read_text())
    assert len(scores["classes"]) == 562
    assert scores["test"] == []
    assert scores["trained_on_validation_labels"]
    assert best.test.n == 0
    refits = [t.checkpoint for t in history.trials.values() if t.spec.purpose == "refit"]
    weights = [load_tensors(LocalStorage(finished.folder), str(key), "cpu")["training"]["learner"] for key in refits]
    exported = best.load_encoder().state_dict()
    for k in range(2):
        name = "inside.blocks.0.0.weight"
        assert torch.equal(exported[f"members.{k}.{name}"], weights[k][f"f.{name}"])
    assert scores["joined"] == 2


def test_leaderboard_and_report_say_that_no_test_was_made(finished: Result, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_csv(finished.folder / "leaderboard.csv")
    assert frame["test_mean"].isna().all()
    assert frame["val"].notna().all()
    cli_module.app(["leaderboard", str(finished.folder)], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "No test was made (test: none)." in shown
    assert "the mean over 3 groups left out in turn" in shown
    assert "trained on all groups" in shown
    html = (finished.folder / "report.html").read_text()
    assert "no test was made" in html
    assert "3 groups left out in turn" in html


def test_a_finished_study_resumes_to_nothing(finished: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    before = [finished.storage.get(key) for key in finished.storage.list("journal/")]
    again = resume(finished.folder).best
    assert again is not None
    assert finished.best is not None
    assert (again.config, again.validation) == (finished.best.config, finished.best.validation)
    assert [finished.storage.get(key) for key in finished.storage.list("journal/")] == before


def test_its_best_model_embeds_a_folder_of_images(finished: Result, glyphs: ImageSet, tmp_path: Path) -> None:
    chosen = [0, 25, 1000, 2000]
    for position in chosen:
        write(glyphs, position, tmp_path / "images" / f"{position:05d}.png")
    frame = predict(finished.folder, tmp_path / "images")
    assert list(frame["file"]) == [f"{position:05d}.png" for position in chosen]
    assert finished.best is not None
    encoder = finished.best.load_encoder()
    assert isinstance(encoder, JoinedEncoder)
    assert all(isinstance(member, AveragedEncoder) for member in encoder.members)
    assert list(frame.columns[1:]) == [f"e{k}" for k in range(encoder.dim)]
    with torch.no_grad():
        expected = encoder(glyphs.images.take(torch.tensor(chosen)))
    np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(float), expected.numpy(), atol=1e-4)
    with pytest.raises(StudyError, match="no predictor"):
        finished.best.load_predictor()


def write_runs(glyphs: ImageSet, folder: Path) -> list[tuple[list[int], list[int]]]:
    """Two runs of five scripts' characters: positions of training and test images, in the order of their names."""
    made = []
    for number, script in enumerate(("greek", "hebrew"), start=1):
        classes = np.unique(glyphs.label[glyphs.group == glyphs.groups.index(script)])[:5]
        first = [int(np.flatnonzero(glyphs.label == k)[0]) for k in classes]
        later = [int(np.flatnonzero(glyphs.label == k)[3]) for k in reversed(classes)]
        name, lines = f"run{number:02d}", []
        for k in range(5):
            write(glyphs, first[k], folder / name / "training" / f"class{k}.png")
            write(glyphs, later[k], folder / name / "test" / f"item{k}.png")
            lines.append(f"{name}/test/item{k}.png {name}/training/class{4 - k}.png")
        (folder / name / LABELS).write_text("\n".join(lines))
        made.append((first, later))
    return made


def test_official_runs_are_answered_by_the_nearest_image(
    finished: Result, glyphs: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_runs(glyphs, tmp_path / "all_runs")
    score = one_shot(finished.folder, tmp_path / "all_runs")
    assert finished.best is not None
    encoder = finished.best.load_encoder()
    errors = []
    for first, later in made:
        with torch.no_grad():
            keys, asked = (encoder(glyphs.images.take(torch.tensor(part))) for part in (first, later))
        answers = [
            min(range(5), key=lambda k: float((key[k] - z).square().sum())) for z, key in zip(asked, [keys] * 5, strict=True)
        ]
        errors.append(np.mean([answer != 4 - k for k, answer in enumerate(answers)]))
    mean, low, high = mean_interval(np.array(errors))
    assert (score.error, score.runs, len(score.answers)) == (pytest.approx(mean), 2, 10)
    assert (score.low, score.high) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))
    assert score.answers["truth"].tolist()[0] == "run01/training/class4.png"
    assert np.mean(score.answers["answer"] != score.answers["truth"]) == pytest.approx(mean)
    words = ["oneshot", str(finished.folder), str(tmp_path / "all_runs"), "--out", str(tmp_path / "answers.csv")]
    cli_module.app(words, standalone_mode=False)
    said = capsys.readouterr().out.strip()
    assert said == score.describe()
    assert said.startswith(f"one-shot error {mean:.1%} [")
    assert said.endswith("over 2 runs, 10 images, by euclidean")
    assert len(pd.read_csv(tmp_path / "answers.csv")) == 10


@pytest.mark.parametrize("unit", [False, True])
def test_a_joined_encoder_compares_by_all_its_members(unit: bool, tmp_path: Path) -> None:
    """Squared distances are the members' sums, cosines the members' means; also after a trip through its file."""
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        members.append(averaged(build_encoder(EncoderSpec("conv4"), (1, 12, 12), (0.5,), (0.3,)), 2).eval())
    images = torch.randint(0, 256, (5, 1, 12, 12), dtype=torch.uint8)
    save_encoder(tmp_path / "encoder.pt", JoinedEncoder(members, unit))
    joined = load_encoder(tmp_path / "encoder.pt")
    with torch.no_grad():
        z, each = joined(images), [member(images) for member in members]
    distance = "cosine" if unit else "euclidean"
    combine = torch.mean if unit else torch.sum
    expected = combine(torch.stack([similarity_logits(one[None], one[None], distance, 1.0)[0] for one in each]), dim=0)
    torch.testing.assert_close(similarity_logits(z[None], z[None], distance, 1.0)[0], expected, rtol=1e-4, atol=1e-4)
    assert joined.dim == z.shape[1] == 3 * members[0].dim
    assert set(joined.maps(images)) == set(joined.layers)


def test_the_distance_is_the_one_that_was_trained() -> None:
    assert distance_of({"distance": "euclidean"}) == "euclidean"
    assert distance_of({"distance": "cosine", "ways": 5}) == "cosine"
    assert distance_of({"learner": "cosine"}) == "cosine"
    assert distance_of({"distance": "weighted_l1"}) == "cosine"
    assert distance_of({"normalise": False}) == "cosine"
    assert [distance_of({"loss": "triplet", "normalise": unit}) for unit in (True, False)] == ["cosine", "euclidean"]


def test_the_winner_trains_again_on_all_groups(finished: Result, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_ray(monkeypatch)
    out = train(str(finished.folder), best=True, workers=1, out=tmp_path / "again")
    assert [path.name for path in out.iterdir()] == ["encoder.pt"]


# What a few-shot study refuses before anything runs.


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """refuse(data, **changes): the line with which the study is refused; nothing is left behind."""
    without_ray(monkeypatch)

    def call(data: object, few_shot: dict[str, Any] | None = None, **changes: Any) -> str:
        given = {**STUDY, "data": data, "few_shot": few_shot or {"ways": 3, "shots": 1, "queries": 3}, **changes}
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is what is looked at)
            run(Study(**given), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def alphabets(folder: Path, groups: int, classes: int, each: int, seed: int = 0) -> str:
    """Noise in alphabet/character folders."""
    random = np.random.default_rng(seed)
    for g in range(groups):
        for k in range(classes):
            for i in range(each):
                path = folder / f"alphabet{g}" / f"character{k}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8)).save(path)
    return str(folder)


def test_the_preset_leaves_an_encoder_for_images_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands but for its size. What ``predict`` says of a file the encoder says of its pixels."""
    without_ray(monkeypatch)
    data = alphabets(tmp_path / "d", 3, 4, 4)
    small = ["few_shot.ways=3", "few_shot.queries=3", "few_shot.episodes=5", "trials=2", "epochs=1", "epoch_images=60"]
    result = run(load_study("omniglot_oneshot", [f"data={data}", *small, "selection.refit_seeds=2"]), tmp_path / "out")
    assert result.best is not None
    encoder = result.best.load_encoder()
    assert isinstance(encoder, JoinedEncoder)
    assert len(encoder.members) == 2
    assert all(isinstance(member, FramedEncoder) for member in encoder.members)
    x, y = np.meshgrid(np.linspace(0, 4, 105), np.linspace(0, 4, 105))
    drawings = (127 + 120 * np.stack([np.sin(x) * np.cos(y), np.cos(x * y / 3)])).astype(np.uint8)
    (tmp_path / "large").mkdir()
    for k, drawing in enumerate(drawings):
        Image.fromarray(drawing).save(tmp_path / "large" / f"{k}.png")
    told = predict(result.folder, tmp_path / "large").iloc[:, 1:].to_numpy(float)
    with torch.no_grad():
        z = encoder(torch.from_numpy(drawings)[:, None]).numpy()
    assert np.abs(z - told).max() < 0.05 * np.abs(told[0] - told[1]).max()


def test_methods_without_labels_answer_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    task = {"ways": 3, "shots": 1, "queries": 3, "episodes": 8, "cross_validate": True}
    given = {**STUDY, "data": alphabets(tmp_path / "d", 3, 4, 4), "few_shot": task, "methods": ["simclr", "prototypical"]}
    result = run(Study(**{**given, "search": {"*.batch_size": 16}}), tmp_path / "out")
    trials = [t for t in History(read_journal(result.storage)).search() if t.status == "finished"]
    assert {t.spec.method for t in trials} == {"simclr", "prototypical"}
    for trial in trials:
        (rung,) = trial.rungs
        assert (rung.scored_on, rung.n) == ("folds", 24)
        assert rung.units is not None
        assert 0 < rung.value < 1
    first, second = (trial.rungs[0].units for trial in trials[:2])
    assert first is not None
    assert second is not None
    assert first.shape == second.shape, "any two trials pair episode by episode"


def test_fewer_classes_than_ways(refuse: Callable[..., str], tmp_path: Path) -> None:
    data = alphabets(tmp_path / "d", 3, 4, 4)
    said = refuse(data, {"ways": 5, "shots": 1, "queries": 3})
    assert said.startswith(
        "validation: 5-way episodes need 5 classes of at least 4 images (1 shots and 3 queries), got 4; lower"
    )
    said = refuse(data, {"ways": 5, "shots": 1, "queries": 3, "cross_validate": True})
    assert "at least 2 groups of 5 classes with 4 images (1 shots and 3 queries), got 0 of 3 groups; lower ways" in said
    test = alphabets(tmp_path / "t", 1, 2, 4, seed=1)
    renamed = Path(test) / "other"
    (Path(test) / "alphabet0").rename(renamed)
    assert refuse(data, test=test).startswith("test: 3-way episodes need 3 classes")


def test_fewer_images_than_shots_and_queries(refuse: Callable[..., str], tmp_path: Path) -> None:
    data = alphabets(tmp_path / "d", 3, 4, 4)
    assert "at least 6 images (1 shots and 5 queries), got 0; lower" in refuse(data, {"ways": 3, "shots": 1, "queries": 5})
    assert "at least 5 images (2 shots and 3 queries), got 0" in refuse(data, {"ways": 3, "shots": 2, "queries": 3})


def test_classes_of_one_image(refuse: Callable[..., str], tmp_path: Path) -> None:
    data = alphabets(tmp_path / "d", 3, 4, 1)
    assert "3-way episodes need 3 classes of at least 2 images (1 shots and 1 queries), got 0" in refuse(
        data, {"ways": 3, "shots": 1, "queries": 1}
    )


def test_a_class_of_one_image_beside_others_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    data = alphabets(tmp_path / "d", 3, 4, 4)
    for lonely in Path(data).glob("*/character0"):
        for path in sorted(lonely.iterdir())[1:]:
            path.unlink()
    task = {"ways": 3, "shots": 1, "queries": 3, "episodes": 5, "cross_validate": True}
    result = run(Study(**{**STUDY, "data": data, "few_shot": task, "trials": 1}), tmp_path / "out")
    assert result.best is not None
    said = (result.folder / "verdict.txt").read_text()
    assert "class(es) have too few images for the episodes and were not asked, first" in said
    task["ways"] = 4
    with pytest.raises(ValueError, match="at least 2 groups of 4 classes"):
        run(Study(**{**STUDY, "data": data, "few_shot": task}), tmp_path / "other")


def test_shared_images_and_classes(refuse: Callable[..., str], tmp_path: Path) -> None:
    data = alphabets(tmp_path / "d", 3, 4, 4)
    same = alphabets(tmp_path / "t", 2, 4, 4)  # the same noise in the same order
    assert "must share no image, but 32 of 32 test images" in refuse(data, test=same)
    other = alphabets(tmp_path / "u", 2, 4, 4, seed=1)
    assert "test classes must be new" in refuse(data, test=other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "classification", "few_shot": {}}, "test: none is for task: few_shot, got classification"),
        (
            {"task": "classification", "test": None, "selection": {}},
            "few_shot.cross_validate is for task: few_shot, got classification",
        ),
        (
            {"few_shot": {**TASK, "cross_validate": False}, "selection": {"refit_seeds": 2}},
            "refit_seeds is for finalists that are trained on the whole budget, got 2 where none are",
        ),
        ({"few_shot": {**TASK, "hold_out": "class"}}, "leaves out whole groups, got hold_out: class"),
        (
            {"selection": {"top": 1, "seeds": 1, "refit": False}},
            "selection.refit: true, since every fold's model lacks a group",
        ),
        ({"task": "classification", "test": None, "few_shot": {}}, "selection.join is for task: few_shot, got classification"),
        ({"protocol": "knn"}, "which protocol few_shot scores, got knn; leave protocol out"),
        ({"few_shot": {**TASK, "test_groups": ["greek"]}}, "got greek beside test: none"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is what is looked at)
        prepare(Study(**{**STUDY, **changes}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
