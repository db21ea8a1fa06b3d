"""One large image as a training set: crops that lie inside it, the same everywhere, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods import CATALOGUE, EncoderSpec, Training, TrainSettings
from methods.data.budget import split
from methods.data.one_image import CROPS, cropped
from methods.data.records import ArrayImages
from methods.data.sources import load
from search_spaces.domains import UserError, build


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row, from 0 to 255."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 0 * x], axis=2).round().astype(np.uint8)


def saved(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_crops_lie_inside_turned_sheared_and_of_all_scales() -> None:
    crops = cropped(coordinates(200, 300), 400, (16, 16)).astype(float)
    place = crops[..., :2] / 255 * (299, 199)  # n h w 2, x and y in the picture
    along = (place[:, 8, 15] - place[:, 8, 0]) / 15  # a step to the right
    down = (place[:, 15, 8] - place[:, 0, 8]) / 15
    scale = np.hypot(*along.T)
    assert scale.min() > 0.8, "a crop is not enlarged, but for rounding"
    assert scale.max() > 8
    assert np.median(scale) == pytest.approx(np.sqrt(scale.min() * scale.max()), rel=0.35), "log uniform"
    large = scale > 2  # rounding to 8 bits hides the angles of small ones
    turn = np.degrees(np.arctan2(along[large, 1], along[large, 0]))
    assert -37 < turn.min() < -25
    assert 25 < turn.max() < 37
    lean = np.degrees(np.arctan2(down[large, 1], down[large, 0])) - 90 - turn
    assert np.abs(lean).max() < 18
    assert np.abs(lean).max() > 8
    bends = place[:, 1:-1, 1:-1] * 4 - place[:, :-2, 1:-1] - place[:, 2:, 1:-1] - place[:, 1:-1, :-2] - place[:, 1:-1, 2:]
    assert np.abs(bends).max() < 7, "straight to the edge: nothing of a crop lies outside, where the border would be repeated"


def test_the_same_crops_every_time_whatever_the_number() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    crops = cropped(picture, 20, (8, 12))
    assert np.array_equal(cropped(picture, 30, (8, 12))[:20], crops)
    assert len(np.unique(crops.reshape(20, -1), axis=0)) == 20


def test_large_crops_are_means_and_not_samples() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (250, 350, 1), dtype=np.uint8)  # sd 74
    sds = cropped(noise, 300, (12, 12)).astype(float).std((1, 2, 3))
    assert sds.min() < 15, "of 16 x 16 pixels and more the mean is left"
    assert sds.max() > 40


def test_an_image_is_a_pool_beside_labelled_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in "ab":
        (tmp_path / "few" / name).mkdir(parents=True)
        for k in range(12):
            saved(tmp_path / "few" / name / f"{k}.png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    image = saved(tmp_path / "one.png", coordinates(120, 150))
    source = load([str(tmp_path / "few"), str(image)])
    assert source.train.images.shape == (3, 16, 16)
    assert source.notes == (f"{CROPS:,} crops of one.png are images without a label",)
    parts = split(source, labels=8, seed=0)
    assert (parts.train.label[-CROPS:] == -1).all()
    config = build(CATALOGUE["simclr"].config, {"batch_size": 16})
    training = Training(CATALOGUE["simclr"], config, parts.train, TrainSettings(1, EncoderSpec("resnet_small"), 0, 32))
    assert training.train_epoch().finite


def test_grey_images_and_limits(tmp_path: Path) -> None:
    image = saved(tmp_path / "grey.png", coordinates(70, 70)[..., 0])
    grey = load(str(image)).train
    assert grey.images.shape == (1, 32, 32)
    assert not grey.classes
    assert grey.flip
    Image.fromarray(coordinates(70, 70)[..., 0]).convert("1").save(tmp_path / "scan.png")
    assert not load(str(tmp_path / "scan.png")).train.flip
    few = load(str(image), size=8, channels=3, memory_limit=50 * 8 * 8 * 3).train
    assert len(few) == 50
    assert few.images.shape == (3, 8, 8)
    assert isinstance(few.images, ArrayImages)


def test_crops_take_no_groups_away(tmp_path: Path) -> None:
    for name in ("x/1", "x/2", "y/3", "y/4"):
        (tmp_path / "alphabets" / name).mkdir(parents=True)
        for k in range(3):
            saved(tmp_path / "alphabets" / name / f"{k}.png", coordinates(16, 16))
    data = load([str(tmp_path / "alphabets"), str(saved(tmp_path / "one.png", coordinates(64, 64)))]).train
    assert data.groups == ("x", "y")
    assert data.group is not None
    assert (data.group[:12] >= 0).all()
    assert (data.group[12:] == -1).all()


def test_one_line_for_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = saved(tmp_path / "small.png", coordinates(60, 100))
    with pytest.raises(UserError, match="must be at least 2 crops high and wide, got 100x60 for crops of 32x32"):
        load(str(small))
    broken = tmp_path / "broken.png"
    broken.write_bytes(small.read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken\.png must be a readable image, but it is not \([^/]+\); save it afresh"):
        load(str(broken))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    with pytest.raises(UserError, match=r"small\.png must have at most 0 megapixels, but it has more; cut or shrink it"):
        load(str(small))
    monkeypatch.undo()
    with pytest.raises(UserError, match="classification needs labelled images"):
        split(load(str(small), size=16), seed=0)
