"""A fixed list of one-shot runs, laid out as Omniglot's one-shot classification task (Lake, Salakhutdinov & Tenenbaum 2015)::

    all_runs/run01/training/class01.png ...     one image a class
    all_runs/run01/test/item01.png ...          images to classify
    all_runs/run01/class_labels.txt             lines "run01/test/item01.png run01/training/class07.png"

The paths in a label file count from the folder that holds the runs, and name files of their own run. A folder or a zip, with or
without folders that wrap the runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from methods.data.decode import Files, is_image
from methods.data.folders import load_pictures, open_files
from methods.data.records import ImageSet, IntArray
from search_spaces.domains import UserError

LABELS = "class_labels.txt"


@dataclass(frozen=True)
class OneShotRun:
    """N-way 1-shot: one image of each class, and images to classify.

    Attributes:
        name: of the run's folder.
        training: int64 [N], positions of the classes' images.
        test: int64 [Q], positions of the images to classify.
        truth: int64 [Q], which of ``training`` is of the same class.
    """

    name: str
    training: IntArray
    test: IntArray
    truth: IntArray


def load_runs(path: str | Path, shape: tuple[int, int, int]) -> tuple[ImageSet, tuple[OneShotRun, ...]]:
    """The images of all runs, in a model's (C, H, W), and the runs by name.

    Raises:
        UserError: no runs, a run without images or labels, a label line that is not two paths of images of its run, an image to
            classify without a line or with two, unreadable images.
    """
    path = Path(path)
    files = open_files(path)
    names = files.names()
    tables = [name for name in names if PurePosixPath(name).name == LABELS and len(PurePosixPath(name).parts) > 1]
    if not tables:
        raise UserError(
            f"{path} must hold one-shot runs, folders with training/, test/ and {LABELS}, but it holds none; check it"
        )
    images = {name for name in names if is_image(name)}
    listed = [_read_run(files, table, images) for table in tables]
    found, _ = load_pictures(path, shape)
    position = {name: k for k, name in enumerate(found.names)}

    def positions(chosen: list[str]) -> IntArray:
        return np.array([position[name] for name in chosen], dtype=np.int64)

    runs = []
    for name, training, answers in listed:
        number = {image: k for k, image in enumerate(training)}
        truth = np.array([number[image] for image in answers.values()], dtype=np.int64)
        runs.append(OneShotRun(name, positions(training), positions(list(answers)), truth))
    return found, tuple(runs)


def _read_run(files: Files, table: str, images: set[str]) -> tuple[str, list[str], dict[str, str]]:
    """The run's name, its training images, and for each test image the training image of its class."""
    where, folder = f"{files.path}/{table}", PurePosixPath(table).parent
    parts = {part: sorted(n for n in images if PurePosixPath(n).parent == folder / part) for part in ("training", "test")}
    for part, members in parts.items():
        if not members:
            raise UserError(f"the run {folder} in {files.path} must hold images in {part}/, but it holds none; add them")
    if len(parts["training"]) < 2:
        raise UserError(f"the run {folder} in {files.path} must have at least 2 classes, got 1 image in training/; add classes")
    try:
        lines = files.read(table).decode("utf-8-sig").splitlines()
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{where} must be UTF-8 text, but it is not ({error}); save it as UTF-8") from None
    answers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2:
            raise UserError(
                f"line {number} of {where} must be a test image and a training image, got {line.strip()!r}; mend it"
            )
        item, answer = (
            _inside(folder, word, members, part, f"line {number} of {where}")
            for word, (part, members) in zip(words, (("test", parts["test"]), ("training", parts["training"])), strict=True)
        )
        if item in answers:
            raise UserError(f"{where} must name every test image once, but {words[0]} comes again in line {number}; remove one")
        answers[item] = answer
    missing = [name for name in parts["test"] if name not in answers]
    if missing:
        raise UserError(
            f"{where} must have a line for every test image, but {len(missing)} have none, first {missing[0]}; add it"
        )
    return folder.name, parts["training"], answers


def _inside(folder: PurePosixPath, word: str, members: list[str], part: str, where: str) -> str:
    """The file that a path of a label line names: an image in that part of the same run, and nothing outside."""
    given = PurePosixPath(word.replace("\\", "/"))
    if given.is_absolute() or ".." in given.parts:
        raise UserError(f"{where} must name files inside the runs, got {word}; write it as {folder.name}/{part}/NAME.png")
    name = str(folder.parent / given)
    if name not in members:
        raise UserError(f"{where} must name an image in {folder.name}/{part}/, got {word}, which is none; correct the path")
    return name
