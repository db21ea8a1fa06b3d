"""One-shot runs read from a folder or zip as Omniglot's task lies, and every way in which it may be broken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from methods.data.oneshot_runs import LABELS, load_runs
from search_spaces.domains import UserError

SHAPE = (1, 16, 16)
ANSWERS = {"run01": (3, 1, 2), "run02": (2, 3, 1)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of three classes; the test image of a class is its training image, a little darker."""
    folder = tmp_path / "all_runs"
    for number, (run, answers) in enumerate(ANSWERS.items()):
        lines = []
        for part in ("training", "test"):
            (folder / run / part).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(10, 256, (3, 20, 20), dtype=np.uint8)
        for k in range(3):
            Image.fromarray(pixels[k]).save(folder / run / "training" / f"class{k + 1:02d}.png")
            Image.fromarray(pixels[answers[k] - 1] - 10).save(folder / run / "test" / f"item{k + 1:02d}.png")
            lines.append(f"{run}/test/item{k + 1:02d}.png {run}/training/class{answers[k]:02d}.png\n")
        (folder / run / LABELS).write_text("".join(lines))
    return folder


def check(path: Path, prefix: str = "") -> None:
    found, listed = load_runs(path, SHAPE)
    assert [run.name for run in listed] == list(ANSWERS)
    for run in listed:
        assert [found.names[k] for k in run.training] == [f"{prefix}{run.name}/training/class0{k}.png" for k in (1, 2, 3)]
        assert [found.names[k] for k in run.test] == [f"{prefix}{run.name}/test/item0{k}.png" for k in (1, 2, 3)]
        assert (run.truth + 1).tolist() == list(ANSWERS[run.name])
        keys, asked = (found.images.take(torch.from_numpy(rows)).float().flatten(1) for rows in (run.training, run.test))
        assert torch.cdist(asked, keys).argmin(1).tolist() == run.truth.tolist()


def test_runs_are_read_from_a_folder_and_from_a_zip_wrapped_or_not(runs: Path, tmp_path: Path) -> None:
    check(runs)
    check(runs.parent, "all_runs/")
    for name, root in (("plain", runs), ("wrapped", runs.parent)):
        archive = shutil.make_archive(str(tmp_path.parent / f"{tmp_path.name}-{name}"), "zip", root)
        check(Path(archive), "all_runs/" if name == "wrapped" else "")


def test_lines_may_come_in_any_order_with_blanks_and_backslashes(runs: Path) -> None:
    file = runs / "run01" / LABELS
    lines = file.read_text().replace("/", "\\").splitlines()
    file.write_text("\n\n" + "\r\n".join(reversed(lines)) + "\n\n")
    _, (first, _) = load_runs(runs, SHAPE)
    assert (first.truth + 1).tolist() == [2, 1, 3]


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(runs: Path) -> None:
        file = runs / "run01" / LABELS
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return change


def remove(name: str) -> Callable[[Path], None]:
    def change(runs: Path) -> None:
        path = runs / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def only_one_class(runs: Path) -> None:
    for name in ("class02.png", "class03.png"):
        (runs / "run01" / "training" / name).unlink()


LINE = "run01/test/item01.png run01/training/class03.png"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit(LINE, "run01/test/item01.png"), ("line 1 of", "a test image and a training image, got 'run01/test/item01.png'")),
        (edit(LINE, f"{LINE} more"), ("line 1 of", "got 'run01/test/item01.png run01/training/class03.png more'")),
        (edit("run01/training/class03.png", "../secret.png"), ("line 1 of", "inside the runs", "got ../secret.png")),
        (edit("run01/training/class03.png", "/etc/passwd"), ("inside the runs", "got /etc/passwd")),
        (edit("run01/test/item01.png", "run01/test/../../x.png"), ("inside the runs",)),
        (edit("run01/training/class03.png", "run02/training/class03.png"), ("an image in run01/training/", "got run02")),
        (edit("run01/training/class03.png", "run01/test/item02.png"), ("an image in run01/training/",)),
        (edit("class03.png", "class09.png"), ("line 1 of", "class09.png, which is none")),
        (edit("item01.png", "item02.png"), ("every test image once", "comes again in line 2")),
        (edit(f"{LINE}\n", ""), ("a line for every test image", "1 have none, first", "run01/test/item01.png")),
        (remove("run01/training/class03.png"), ("line 1 of", "class03.png, which is none")),
        (remove("run01/test"), ("must hold images in test/",)),
        (remove("run01/training"), ("must hold images in training/",)),
        (only_one_class, ("at least 2 classes",)),
        (lambda runs: (runs / "run01" / LABELS).write_bytes(b"\xff\xfe\xfa"), ("UTF-8",)),
        (lambda runs: (runs / "run01" / "test" / "item01.png").write_bytes(b"no picture"), ("must be readable", "item01.png")),
        (lambda runs: [(runs / run / LABELS).unlink() for run in ANSWERS], ("must hold one-shot runs",)),
        (remove("."), ("must exist",)),
    ],
)
def test_what_is_broken_is_one_clear_line(runs: Path, change: Callable[[Path], object], words: tuple[str, ...]) -> None:
    change(runs)
    with pytest.raises(UserError) as caught:
        load_runs(runs, SHAPE)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
