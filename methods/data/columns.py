"""What a table says of its images beside file and label: a given division, folds, and further label columns."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from methods.data.decode import Files
from methods.data.records import ImageSet, LabelColumn, Source
from methods.data.views import renumber, select
from search_spaces.domains import UserError

Part = Literal["train", "validation", "test"]
PARTS: dict[str, Part] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""Values of a ``split`` column."""

FURTHER = "label:"
"""Before the name of a further label column."""


def read_table(files: Files, table: str, where: str) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells of a csv file by column; names of columns in lower case, but for what follows ``label:``.

    Raises:
        UserError: no UTF-8, no table, or without the columns file and label.
    """
    data = files.read(table)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} must be UTF-8 text, but byte {error.start} is not; save it as CSV UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [_column_name(cell.strip()) for cell in next(reader, [])]
        if "file" not in header:
            header = ["file" if name == "filename" else name for name in header]
        if not {"file", "label"} <= set(header):
            raise UserError(
                f"{where} must start with the columns file,label, got {','.join(header) or 'nothing'}; add a header row"
            )
        records = []
        for cells in reader:
            if len(cells) > len(header):
                raise UserError(
                    f"line {reader.line_num} of {where} must have {len(header)} cells, got {len(cells)}; quote commas"
                )
            if any(cell.strip() for cell in cells):
                records.append((reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))))
    except csv.Error as error:
        raise UserError(
            f"{where} must be a comma-separated table, but line {reader.line_num} is not ({error}); mend it"
        ) from error
    return records


def _column_name(cell: str) -> str:
    if cell.lower().startswith(FURTHER):
        return FURTHER + cell[len(FURTHER) :].strip()
    return cell.lower()


def part_of(value: str, labelled: bool, where: str) -> Part:
    """The part that a cell of a ``split`` column names; blank is allowed for unlabelled images, which are in the pool.

    Raises:
        UserError: another value.
    """
    if not value and not labelled:
        return "train"
    if value.lower() not in PARTS:
        raise UserError(f"the split column must say {', '.join(PARTS)}, got {value or 'a blank'} in {where}; correct it")
    return PARTS[value.lower()]


def fold_of(value: str, where: str) -> int:
    """The fold that a cell of a ``fold`` column names, -1 for a blank. Raises UserError for anything but a whole number."""
    if value and not (value.isascii() and value.isdecimal()):
        raise UserError(f"the fold column must hold whole numbers from 0, got {value} in {where}; number the folds")
    return int(value) if value else -1


def label_column(name: str, values: Sequence[str]) -> LabelColumn:
    """A further label column from text, blank where unknown."""
    classes = in_order({value for value in values if value})
    number = {value: k for k, value in enumerate(classes)}
    return LabelColumn(name, classes, np.array([number.get(value, -1) for value in values], dtype=np.int64))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """In alphabetical order; numbers by value where all are numbers."""
    found = list(names)
    if all(name.isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def by_parts(data: ImageSet, parts: Sequence[Part], notes: Sequence[str] = (), kept: bool = False) -> Source:
    """The images as training and test set, each with the classes that it has.

    Args:
        parts: of each image. Images that validate count as training images; where their classes are others than those of
            training, few-shot studies validate on them.
        kept: whether the images of the validation part validate in a classification too (``ImageSet.validates``).
    """
    part: NDArray[np.str_] = np.array(parts)
    validates = part == "validation"
    classes = {each: {data.classes[k] for k in np.unique(data.label[part == each]) if k >= 0} for each in get_args(Part)}
    apart = in_order(classes["validation"]) if classes["validation"].isdisjoint(classes["train"]) else ()
    if classes["validation"]:
        note = "validates" if kept else "counts as training images: the label budget draws its own"
        if apart:
            note += f", and few-shot studies validate on its {len(apart)} classes"
        notes = (*notes, f"a validation part of {np.count_nonzero(validates)} images {note}")
        if kept:
            data = dataclasses.replace(data, validates=validates)
    if not (part == "test").any():
        return Source(data, None, tuple(notes), apart)
    train, test = (select(data, np.flatnonzero(rows)) for rows in (part != "test", part == "test"))
    own, asked = classes["train"] | classes["validation"], classes["test"]
    train, test = renumber(train, in_order(own)), dataclasses.replace(test, validates=None)
    return Source(train, renumber(test, train.classes if asked <= own else in_order(asked)), tuple(notes), apart)
