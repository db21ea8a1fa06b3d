"""Pictures: which test images are shown, neighbours against a plain loop, odd data, and where pictures end up."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Split
from methods.parts.encoders import Encoder, EncoderSpec
from methods.parts.patches import mosaic
from methods.protocols import protocol
from methods.tasks import Classification
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.engine.events import Chosen, Ended, Reached, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Segment, SlotSetup, TrialSpec
from orchestrator.engine.trial import PICTURES, THUMBNAIL, SegmentRun
from orchestrator.finish import draw_best
from orchestrator.folder import RunFolder, file_name
from orchestrator.outputs import report
from orchestrator.outputs.gallery import CLASSES, FEWEST, IMAGES, QUERIES, _short, draw_gallery, flat, nearest, queries, spread


class Mean(Encoder):
    """The mean colour; the same for every image where ``collapsed``."""

    layers = ()

    def __init__(self, collapsed: bool = False) -> None:
        super().__init__()
        self.dim, self.collapsed = 3, collapsed

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().mean((2, 3)).expand(-1, 3) / 255
        return torch.ones_like(x) if self.collapsed else x


def wide_grey_images(count: int, classes: int) -> LabelledSubset:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 8, 12, 1)).astype(np.uint8)
    label = np.arange(count) % classes
    data = ImageSet(ArrayImages(pixels), label, tuple(f"a class with a long name, number {k}" for k in range(classes)))
    return LabelledSubset(data, np.arange(count), label)


def test_shown_images_are_spread_over_classes_and_within_them() -> None:
    label = np.repeat(np.arange(4), 900)
    rows = spread(label)
    assert len(rows) == IMAGES
    assert np.bincount(label[rows]).tolist() == [250] * 4
    assert {0, 899, 900, 3599} <= set(rows.tolist())
    many = np.arange(3000) % 100
    shown = np.unique(many[spread(many)])
    assert len(shown) == CLASSES
    assert (shown[0], shown[-1]) == (0, 99)
    assert spread(np.array([3, 3, 1])).tolist() == [0, 1, 2], "few images are all shown"


def test_queries_come_from_as_many_classes_as_there_are() -> None:
    label = np.tile(np.arange(10), 7)
    assert sorted(label[queries(label)]) == list(range(10))
    assert np.bincount(np.array([0, 1] * 30)[queries(np.array([0, 1] * 30))]).tolist() == [5, 5]
    assert len(queries(np.arange(100) % 50)) == QUERIES


def test_neighbours_are_the_nearest_by_cosine_and_never_the_image_itself() -> None:
    z = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    found = nearest(z.copy(), 3)
    for i in range(12):
        cosines = {j: sum(float(a) * float(b) for a, b in zip(z[i], z[j], strict=True)) for j in range(12) if j != i}
        assert found[i].tolist() == sorted(cosines, key=lambda j: -cosines[j])[:3]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_maps_are_finite_and_repeat_whatever_the_embeddings(rank: int) -> None:
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 5)) + 1).astype(np.float32)
    points = flat(z, 7)
    assert points.shape == (20, 2)
    assert np.isfinite(points).all()
    assert (flat(z, 7) == points).all()


def test_a_map_keeps_what_is_apart_apart() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20)
    points = flat((rng.normal(size=(40, 6)) * 0.1 + 3 * label[:, None]).astype(np.float32), 0)
    centres = np.stack([points[label == k].mean(0) for k in (0, 1)])
    assert (np.linalg.norm(points[:, None] - centres, axis=2).argmin(1) == label).all()


@pytest.mark.parametrize(("count", "collapsed"), [(FEWEST - 1, False), (FEWEST, True), (60, False)])
def test_both_pictures_or_none(count: int, collapsed: bool) -> None:
    test = wide_grey_images(count, 25 if count == 60 else 2)
    drawn = draw_gallery(Mean(collapsed).train(), test, 0)
    assert len(drawn) == (0 if count < FEWEST else 2)
    for drawing in drawn:
        width, height = Image.open(io.BytesIO(drawing.png)).size
        assert 700 < width <= 1100
        assert 150 < height < 700
        assert len(drawing.png) < 400_000
    if count == 60:
        assert "of 20 of 25 classes" in drawn[0].title


def test_titles_become_file_names() -> None:
    assert file_name("original | a/b: c\\d") == "original - a-b- c-d"
    assert file_name("12% of 9, here") == "12% of 9, here"


def test_mosaics_may_have_white_borders() -> None:
    x = torch.zeros(1, 4, 1, 2, 2)
    framed = mosaic(x, border=1)
    assert framed.shape == (1, 1, 8, 8)
    assert framed.sum() == 64 - 16
    assert mosaic(x).shape == (1, 1, 4, 4)


# Where they end up


@pytest.fixture
def finished(make_split: Callable[..., Split], tmp_path: Path) -> tuple[SlotSetup, Split, RunFolder, History]:
    """A finalist trained on images of 100 x 100, chosen."""
    split = make_split(4, 8, 4, 100)
    setup = SlotSetup(
        split=dataclasses.replace(split, test=None),
        methods={"supervised": CATALOGUE["supervised"]},
        encoder=EncoderSpec("conv4"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=protocol("predict"),
        objective=None,
        top=Fidelity("epochs", 1),
        task=Classification(),
        epoch_images=16,
        precision="fp32",
        seed=0,
        storage=LocalStorage(tmp_path),
        threads=1,
    )
    spec = TrialSpec("0000-fold-0", 0, "supervised", {"batch_size": 16}, 0, "fold")
    run = SegmentRun(setup, World())
    run.begin(Assignment(spec, Segment(spec.key, Fidelity("epochs", 1)), illustrate=True))
    told = run.advance()
    assert told.checkpoint is not None
    history = History()
    for event in (
        TrialStarted(TrialSpec("0000", 0, "supervised", {"batch_size": 16}, 0)),
        Ended("0000", "finished", ""),
        TrialStarted(spec),
        Reached(spec.key, told.done, told.checkpoint),
        Ended(spec.key, "finished", ""),
        Chosen(0, spec.key),
    ):
        history.add(event)
    return setup, split, RunFolder(LocalStorage(tmp_path)), history


def test_pictures_reach_tensorboard_and_the_report_once(
    finished: tuple[SlotSetup, Split, RunFolder, History], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, split, folder, history = finished
    draw_best(setup, split, folder, history)
    place = folder.gallery("0000-fold-0")
    names = list(folder.pictures(place))
    assert [name[:16] for name in names] == ["map of 32 test i", "nearest neighbou"]
    events = EventAccumulator(str(folder.path / "tensorboard" / "0000-fold-0"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"gallery/supervised/{name}" for name in names]
    shown = report.gallery(folder, history)
    assert [picture.title for picture in shown] == names
    assert all(picture.uri.startswith("data:image/png;base64,iVBOR") for picture in shown)
    assert report.gallery(folder, History()) == []

    def never(*args: Any) -> None:
        raise AssertionError("drawn already")

    monkeypatch.setattr("orchestrator.finish.draw_gallery", never)
    before = folder.storage.list()
    assert not draw_best(setup, split, folder, history)
    assert folder.storage.list() == before
    monkeypatch.undo()
    folder.storage.delete(f"{place}titles.json")
    assert draw_best(setup, split, folder, history), "a gallery cut short is drawn again"


def test_a_winner_whose_weights_are_gone_is_not_drawn(finished: tuple[SlotSetup, Split, RunFolder, History]) -> None:
    """Where every retraining failed the choice is a trial of the search, whose checkpoint went when it ended."""
    setup, split, folder, history = finished
    trial = history.trials["0000-fold-0"]
    assert trial.checkpoint is not None
    folder.storage.delete(trial.checkpoint)
    draw_best(setup, split, folder, history)
    assert folder.storage.list("gallery/") == []


def test_what_a_method_sees_is_small_and_of_all_classes(finished: tuple[SlotSetup, Split, RunFolder, History]) -> None:
    _, split, folder, _ = finished
    (png,) = folder.pictures(folder.trial("0000-fold-0")).values()
    picture = np.asarray(Image.open(io.BytesIO(png)))
    rows, margin = PICTURES // 2, 2
    assert picture.shape == (rows * (THUMBNAIL + margin) + margin, 2 * (2 * THUMBNAIL + margin) + margin, 3)
    # Two to a row, each beside its augmented view: the originals are the evenly spaced images of the pool.
    index = torch.linspace(0, len(split.train) - 1, PICTURES).round().long()
    originals = split.train.images.take(index).float().mean((2, 3))
    for n in range(PICTURES):
        y, x = (n // 2) * (THUMBNAIL + margin) + margin, (n % 2) * (2 * THUMBNAIL + margin) + margin
        mean = picture[y : y + THUMBNAIL, x : x + THUMBNAIL].reshape(-1, 3).mean(0)
        assert np.abs(mean - originals[n].numpy()).max() < 2


def test_long_names_are_cut_in_the_middle() -> None:
    assert _short("Japanese_(katakana)/character07") == "Japanes…a)/character07"
    assert len(_short("x" * 40)) == 22
    assert _short("Tagalog/character17") == "Tagalog/character17"
