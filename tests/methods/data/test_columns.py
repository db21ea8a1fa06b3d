"""Columns beside file and label: a given division, folds, further labels; from labels.csv and from .npz."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from methods.batch import BatchSpec
from methods.data.budget import split
from methods.data.episodic import split_few_shot
from methods.data.records import ArrayImages, ImageSet, LabelColumn, Source
from methods.data.sources import load
from methods.data.views import join, select
from methods.tasks import Classification
from methods.tasks.testing import check_task
from methods.training.feeding import Feeder
from methods.world import World
from search_spaces.domains import UserError

ROWS = [  # label, split, fold, label:Size
    ("cat", "train", "0", "big"), ("cat", "train", "1", ""), ("dog", "train", "0", "small"), ("dog", "Train", "", "big"),
    ("cat", "val", "1", "big"), ("dog", "validation", "0", "small"), ("", "", "", "small"),
    ("cat", "test", "", "big"), ("dog", "test", "", ""),
]  # fmt: skip


def folder(path: Path, rows: list[tuple[str, str, str, str]] = ROWS, header: str = "file,label,split,fold,label:Size") -> Path:
    """An image for each row whose value is the row's number."""
    path.mkdir(exist_ok=True)
    lines = [header]
    for k, row in enumerate(rows):
        Image.new("L", (16, 16), k).save(path / f"{k}.png")
        lines.append(",".join((f"{k}.png", *row)))
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return path


def archive(path: Path, rows: list[tuple[str, str, str, str]] = ROWS, **more: Any) -> Path:
    pixels = np.arange(len(rows), dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2)
    labels, parts, folds, sizes = zip(*rows, strict=True)
    arrays = {"split": list(parts), "fold": [int(f or -1) for f in folds], "labels_Size": list(sizes), **more}
    np.savez(path, images=pixels, labels=list(labels), **arrays)
    return path


def numbers(data: ImageSet, index: Any = None) -> list[int]:
    rows = torch.arange(len(data)) if index is None else torch.from_numpy(index)
    return data.images.take(rows)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_given_division_is_kept(tmp_path: Path, kind: str) -> None:
    source = load(folder(tmp_path / "x") if kind == "folder" else archive(tmp_path / "x.npz"))
    part = split(source)
    assert part.test is not None
    assert not part.holdout
    assert sorted(numbers(part.labelled.data, part.labelled.index)) == [0, 1, 2, 3]
    assert sorted(numbers(part.validation.data, part.validation.index)) == [4, 5]
    assert sorted(numbers(part.test.data, part.test.index)) == [7, 8]
    assert sorted(numbers(dataclasses.replace(source.train, images=part.train.images))) == list(range(7))
    assert any("a validation part of 2 images validates" in note for note in source.notes)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_folds_and_further_labels_are_loaded(tmp_path: Path, kind: str) -> None:
    source = load(folder(tmp_path / "x") if kind == "folder" else archive(tmp_path / "x.npz"))
    data = source.train
    assert data.fold is not None
    assert data.fold.tolist() == [0, 1, 0, -1, 1, 0, -1]
    (size,) = data.targets
    assert (size.name, size.classes) == ("Size", ("big", "small"))
    assert size.label.tolist() == [0, -1, 1, 0, 0, 1, 1]
    assert source.test is not None
    assert source.test.targets[0].label.tolist() == [0, -1]


def test_columns_survive_views(tmp_path: Path) -> None:
    data = load(folder(tmp_path / "x")).train
    some = select(data, np.array([4, 0, 6]))
    assert some.fold is not None
    assert some.validates is not None
    assert (some.fold.tolist(), some.validates.tolist()) == ([1, 0, -1], [True, False, False])
    assert some.targets[0].label.tolist() == [0, 0, 1]
    plain = ImageSet(data.images, data.label, data.classes)
    other = dataclasses.replace(
        plain, targets=(LabelColumn("Size", ("tiny", "big"), np.arange(7) % 2), LabelColumn("Ink", ("red",), np.zeros(7, int)))
    )
    both = join([some, other, plain])
    assert both.fold is not None
    assert both.validates is not None
    assert both.fold.tolist() == [1, 0, -1, *[-1] * 14]
    assert both.validates.sum() == 1
    size, ink = both.targets
    assert [size.classes[k] if k >= 0 else "" for k in size.label] == [
        "big",
        "big",
        "small",
        *["tiny", "big"] * 3,
        "tiny",
        *[""] * 7,
    ]
    assert ink.label.tolist() == [-1] * 3 + [0] * 7 + [-1] * 7
    assert join([plain, plain]).fold is None


def test_validation_classes_of_their_own_serve_few_shot(tmp_path: Path) -> None:
    rows = [
        (name, part, "", "") for name, part in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "val")) for _ in range(3)
    ]
    source = load(folder(tmp_path / "x", rows))
    assert source.validation == ("c", "d")
    assert split_few_shot(source, test="none").validation.data.classes == ("c", "d")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("cat", "dev", "", ""), "the split column must say train, val, validation, test, got dev in line 11 of"),
        (("cat", "", "", ""), "got a blank in line 11 of"),
        (("cat", "train", "one", ""), "the fold column must hold whole numbers from 0, got one in line 11 of"),
        (("cat", "train", "-2", ""), "got -2 in line 11 of"),
    ],
)
def test_cells_that_say_nothing_are_refused(tmp_path: Path, row: tuple[str, str, str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(folder(tmp_path / "x", [*ROWS, row]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"split": ["dev"] * 9}, "the split column must say train, val, validation, test, got dev in row 0 of"),
        ({"split": ["train"] * 8}, "split of"),
        ({"fold": [0.5] * 9}, "must be whole numbers from 0, -1 for none, got float64"),
        ({"fold": [-2] * 9}, "must be whole numbers from 0, -1 for none, got -2"),
        ({"fold": [0] * 8}, "fold of"),
        ({"labels_Size": [0] * 8}, "labels_Size of"),
        ({"test_images": np.zeros((2, 16, 16), np.uint8)}, "must have either split or test_images, got both"),
    ],
)
def test_arrays_that_say_nothing_are_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(archive(tmp_path / "x.npz", **more))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_given_division_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    source = load(folder(tmp_path / "x"))
    with pytest.raises(UserError, match=r"validation is what the data's split column marks, got a share of 0.3"):
        split(source, validation=0.3)
    rows = [row for row in ROWS if row[:2] != ("dog", "validation")]
    with pytest.raises(UserError, match=r"by the split or fold column none of the 5 labels is one of dog to validate"):
        split(load(folder(tmp_path / "y", rows)))
    with pytest.raises(
        UserError, match="keep_groups allows no group on both sides, but by the split or fold column 2 images validate"
    ):
        split(grouped(source), keep_groups=True)


def grouped(source: Source) -> Source:
    assert source.test is not None
    train = dataclasses.replace(source.train, group=np.zeros(len(source.train), dtype=np.int64), groups=("g",))
    return Source(train, dataclasses.replace(source.test, group=None))


def patterned(each: int = 12) -> Source:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(3), each).astype(np.int64)
    pixels = (rng.uniform(0, 255, (3, 8, 8, 1))[label] + rng.normal(0, 40, (3 * each, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    further = (LabelColumn("ink", ("red", "blue"), rng.integers(-1, 2, 3 * each)),)
    validates = np.arange(3 * each) % 3 == 0
    return Source(ImageSet(ArrayImages(pixels), label, ("a", "b", "c"), targets=further, validates=validates))


def test_marked_images_are_never_held_out_and_the_task_keeps_its_contract() -> None:
    source = patterned()
    part = check_task(Classification(), source)
    assert part.holdout
    assert part.test is not None
    assert part.test.data.validates is not None
    assert not part.test.data.validates.any()
    assert len(part.validation) == 12


def test_further_labels_are_hidden_with_the_label_and_reach_the_labelled_batch() -> None:
    source = patterned()
    part = split(source, labels=20, seed=1)
    train = part.train
    further = train.target_labels()
    assert further is not None
    assert further.shape == (len(train), 1)
    assert (further[train.label < 0] == -1).all()
    assert (further[train.label >= 0] >= 0).any()
    # Nobody sees more than the budget's.
    budget = np.zeros(len(train), dtype=bool)
    budget[part.budget().index] = True
    assert (part.labelled.data.targets[0].label[~budget] == -1).all()
    final = Classification(labels=20).final_data(part).target_labels()
    assert final is not None
    assert (final[part.validation.index] >= 0).any()
    step = Feeder(train, BatchSpec(pool=8, labelled=6), 0, World()).step(0, 0.0)
    assert step.pool is not None
    assert step.labelled is not None
    assert step.pool.targets is None
    assert step.labelled.targets is not None
    assert step.labelled.targets.dtype == torch.int64
    assert (step.labelled.targets.numpy() == further[step.labelled.index.numpy()]).all()
    plain = dataclasses.replace(train, targets=())
    assert plain.target_labels() is None
    bare = Feeder(plain, BatchSpec(labelled=6), 0, World()).step(0, 0.0).labelled
    assert bare is not None
    assert bare.targets is None
