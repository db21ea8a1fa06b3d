"""Folders and zips of images as a ``Source``: class folders, or a ``labels.csv``.

Class folders (a wrapping folder around any of these is looked through):

- ``class/file``: one folder a class;
- ``alphabet/character/file``, where every file lies that deep: class ``alphabet/character``, group ``alphabet``;
- ``train/...`` and ``test/...`` of either kind; ``val/...`` joins ``train``, because labelwise draws its own validation part,
  but where its classes are others than those of ``train`` few-shot studies validate on them (CIFAR-FS, miniImageNet);
- ``unlabelled/...`` beside the classes or beside ``train``: images without label, in any arrangement.

``labels.csv`` with the columns ``file,label[,group][,caption][,split][,fold][,label:NAME ...]``: ``file`` counts from the csv's
folder, a blank label means unlabelled, and every image outside an ``unlabelled/`` folder has a row. ``split`` says train, val
(or validation) or test, and is kept as it is; ``fold`` is a whole number; ``label:NAME`` is a further label. In its place
there may be ``train.csv``, ``val.csv`` and ``test.csv``, as miniImageNet comes (``filename`` counts from the csv's folder or
from ``images/`` beside it). Files that are not images are ignored and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np

from methods.data.captions import tell_classes
from methods.data.columns import FURTHER, Part, by_parts, fold_of, in_order, label_column, part_of, read_table
from methods.data.decode import (
    Bad,
    Files,
    FolderFiles,
    Header,
    OnBadImage,
    Size,
    StreamedImages,
    ZipFiles,
    is_image,
    read_all,
)
from methods.data.records import ArrayImages, Images, ImageSet, Source
from search_spaces.domains import UserError

TRAIN = frozenset(("train", "training"))
TEST = frozenset(("test", "testing"))
VALIDATION = frozenset(("val", "valid", "validation"))
UNLABELLED = frozenset(("unlabelled", "unlabeled"))
CSV = "labels.csv"
TABLES: dict[str, Part] = {"train.csv": "train", "val.csv": "validation", "test.csv": "test"}
"""Tables that divide the images, where there is no ``labels.csv``."""


@dataclass(frozen=True)
class Row:
    """One image file and what its place or its csv row says of it; a blank label means unlabelled.

    Attributes:
        marked: whether a ``split`` column named the part.
        fold: -1 where none.
        further: further labels by the name of their column.
    """

    name: str
    label: str = ""
    group: str = ""
    caption: str = ""
    part: Part = "train"
    marked: bool = False
    fold: int = -1
    further: Mapping[str, str] = field(default_factory=dict)


def open_files(path: Path) -> Files:
    """The files of a folder or zip.

    Raises:
        UserError: there is nothing there, or it is neither.
    """
    if path.is_dir():
        return FolderFiles(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return ZipFiles(path)
    if path.exists():
        raise UserError(
            f"images come as a folder, a .zip or an .npz, but {path} is none of these; put the images into a folder"
        )
    raise UserError(f"{path} must exist, but it does not; check the path")


def load_files(
    path: Path, size: Size | None, channels: int | None, on_bad_image: OnBadImage, memory_limit: int, flip: bool | None
) -> Source:
    """A folder or zip of labelled images; see the module's docstring.

    Raises:
        UserError: nothing readable, no labels, images and csv rows that do not match, corrupt images (with ``refuse``).
    """
    files = open_files(path)
    names = files.names()
    images = [name for name in names if is_image(name)]
    if not images:
        what = f"{len(names)} other files" if names else "nothing"
        raise UserError(f"{path} must hold images (png, jpg, bmp, gif, webp, tiff, ppm), but it holds {what}; check the path")
    tables = _tables(names, images)
    rows, notes = _rows_of_csv(files, tables, images) if tables else (_rows_of_folders(path, images), [])
    others = len(names) - len(images) - len(tables)
    if others:
        notes.append(f"{others} files in {path} that are not images were ignored")
    return _assemble(files, rows, notes, size, channels, on_bad_image, memory_limit, flip)


def load_pictures(
    path: str | Path, shape: tuple[int, int, int], on_bad_image: OnBadImage = "refuse"
) -> tuple[ImageSet, tuple[str, ...]]:
    """All images of a folder, zip or single file without regard to labels, in a model's (C, H, W); and notes.

    Raises:
        UserError: no images, or corrupt ones (with ``refuse``).
    """
    path = Path(path)
    if path.is_file() and is_image(path.name):
        files: Files = FolderFiles(path.parent)
        names = [path.name]
    else:
        files = open_files(path)
        names = [name for name in files.names() if is_image(name)]
    if not names:
        raise UserError(f"{path} must hold images (png, jpg, bmp, gif, webp, tiff, ppm), but it holds none; check the path")
    source = _assemble(files, [Row(name) for name in names], [], shape[1:], shape[0], on_bad_image, 2**62, None)
    return source.train, source.notes


def _unwrapped(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Each name's parts without the folders that wrap everything (a folder of files is never a wrapping)."""
    paths = [PurePosixPath(name).parts for name in names]
    while len({p[0] for p in paths}) == 1 and all(len(p) > 2 for p in paths):
        paths = [p[1:] for p in paths]
    return paths


def _tables(names: Sequence[str], images: Sequence[str]) -> dict[str, Part]:
    """The csv files that describe the images: the highest ``labels.csv``; or ``train.csv`` and what stands beside it, where no
    image lies in a class folder.
    """
    by_depth = sorted(names, key=lambda name: name.count("/"))
    paths = {name: PurePosixPath(name) for name in by_depth}
    for name in by_depth:
        if paths[name].name.lower() == CSV:
            return {name: "train"}
    first = next((paths[name].parent for name in by_depth if paths[name].name.lower() == "train.csv"), None)
    placed = {paths[name].parent for name in images if not UNLABELLED & {part.lower() for part in paths[name].parts}}
    if first is None or not placed <= {first, first / "images"}:
        return {}
    return {n: TABLES[p.name.lower()] for n, p in paths.items() if p.parent == first and p.name.lower() in TABLES}


def _rows_of_folders(path: Path, names: Sequence[str]) -> list[Row]:
    paths = _unwrapped(names)
    tops = {p[0].lower() for p in paths if len(p) > 1}
    split = bool(tops & TRAIN)
    # Without a train folder, test/class/file beside class/file is still a test part.
    deep_test = all(len(p) > 2 for p in paths if p[0].lower() in TEST)
    tested = split or (deep_test and any(len(p) == 2 and p[0].lower() not in TEST | UNLABELLED for p in paths))
    parts: dict[str, list[tuple[str, tuple[str, ...]]]] = {"train": [], "validation": [], "test": [], "unlabelled": []}
    for name, p in zip(names, paths, strict=True):
        top = p[0].lower() if len(p) > 1 else ""
        inner = p[1].lower() if len(p) > 2 and split else ""
        if top in UNLABELLED or (top in TRAIN and inner in UNLABELLED):
            parts["unlabelled"].append((name, p))
        elif tested and top in TEST:
            parts["test"].append((name, p[1:]))
        elif split and (top in TRAIN or top in VALIDATION):
            parts["train" if top in TRAIN else "validation"].append((name, p[1:]))
        else:
            parts["train"].append((name, p))
    labelled = parts["train"] + parts["validation"] + parts["test"]
    stray = [name for name, p in labelled if len(p) < 2]
    if len(stray) == len(labelled):
        raise UserError(
            f"{path} must hold one folder a class or a {CSV}, but it holds neither; sort the images into class folders"
        )
    if stray:
        raise UserError(
            f"every image in {path} must lie in a class folder, but {len(stray)} do not, first {stray[0]};"
            " move them into a class folder or into unlabelled/"
        )
    grouped = all(len(p) > 2 for _, p in labelled)
    rows = [Row(name, *_class_of(p, grouped), part=part) for part in get_args(Part) for name, p in parts[part]]
    return [*rows, *(Row(name) for name, _ in parts["unlabelled"])]


def _class_of(parts: tuple[str, ...], grouped: bool) -> tuple[str, str]:
    return (f"{parts[0]}/{parts[1]}", parts[0]) if grouped else (parts[0], "")


def _rows_of_csv(files: Files, tables: Mapping[str, Part], names: Sequence[str]) -> tuple[list[Row], list[str]]:
    known = set(names)
    rows: dict[str, Row] = {}
    base = PurePosixPath(next(iter(tables))).parent  # of all of them
    prefix = "" if str(base) == "." else f"{base}/"
    for table, part in tables.items():
        where = f"{files.path}/{table}"
        missing: list[str] = []
        for line, record in read_table(files, table, where):
            file = record.get("file", "").replace("\\", "/").removeprefix("./")
            name = next((n for n in (prefix + file, f"{prefix}images/{file}") if n in known), "")
            if not name:
                missing.append(f"{file or 'a blank file'} in line {line}")
            elif name in rows:
                raise UserError(
                    f"{where} must name every file once, but {file} comes again in line {line}; remove one of the rows"
                )
            else:
                rows[name] = _row(name, record, part, PurePosixPath(table).name.lower() == CSV, f"line {line} of {where}")
        if missing:
            raise UserError(
                f"every row of {where} must name an image, but {len(missing)} do not, first {missing[0]};"
                " correct the file column"
            )
    rest = [name for name in names if name not in rows]
    loose = [n for n in rest if not UNLABELLED & {p.lower() for p in PurePosixPath(n.removeprefix(prefix)).parts[:-1]}]
    if loose:
        asked = " or ".join(f"{files.path}/{table}" for table in tables)
        raise UserError(
            f"every image must have a row in {asked}, but {len(loose)} have none, first {loose[0]};"
            " add rows with a blank label, or move them into unlabelled/"
        )
    return [*rows.values(), *(Row(name) for name in rest)], []


def _row(name: str, record: Mapping[str, str], part: Part, whole: bool, where: str) -> Row:
    """An image's row; ``whole`` where the table holds all parts, so that its ``split`` column counts."""
    label, marked = record.get("label", ""), whole and "split" in record
    return Row(
        name,
        label,
        record.get("group", ""),
        record.get("caption", ""),
        part_of(record["split"], bool(label), where) if marked else part,
        marked,
        fold_of(record.get("fold", ""), where),
        {column.removeprefix(FURTHER): cell for column, cell in record.items() if column.startswith(FURTHER)},
    )


def _assemble(
    files: Files,
    rows: Sequence[Row],
    notes: list[str],
    size: Size | None,
    channels: int | None,
    on_bad_image: OnBadImage,
    memory_limit: int,
    flip: bool | None,
) -> Source:
    names = [row.name for row in rows]
    array, shape, headers = read_all(files, names, size, channels, memory_limit)
    bad = [h for h in headers if isinstance(h, Bad)]
    good = [h for h in headers if isinstance(h, Header)]
    if bad and (on_bad_image == "refuse" or not good):
        _refuse(files, bad, len(headers))
    kept = [i for i, h in enumerate(headers) if isinstance(h, Header)]
    rows = [rows[i] for i in kept]
    images: Images
    if array is None:
        images = StreamedImages(files, [row.name for row in rows], shape)
        notes.append(f"the images take more than {memory_limit / 2**30:.3g} GiB, so they are decoded while training")
    else:
        images = ArrayImages(array[kept] if bad else array)
    if bad:
        notes.append(f"{len(bad)} corrupt images were left out: {', '.join(b.name for b in bad)}")
    if flip is None:
        # 1-bit images are characters or drawings, whose mirror image is another character.
        flip = not all(h.mode == "1" for h in good)
    everything = _image_set(images, rows, flip)
    return by_parts(everything, [row.part for row in rows], notes, any(row.marked for row in rows))


def _refuse(files: Files, bad: Sequence[Bad], total: int) -> None:
    first = min(bad, key=lambda b: b.name)
    raise UserError(
        f"every image in {files.path} must be readable, but {len(bad)} of {total} are not, first {first.name} ({first.reason});"
        " remove them or set on_bad_image to skip"
    )


def _image_set(images: Images, rows: Sequence[Row], flip: bool) -> ImageSet:
    classes = in_order({row.label for row in rows if row.label})
    groups = in_order({row.group for row in rows if row.group})
    number = {name: k for k, name in enumerate(classes)}
    of_group = {name: k for k, name in enumerate(groups)}
    fold = np.array([row.fold for row in rows], dtype=np.int64)
    further = dict.fromkeys(name for row in rows for name in row.further)
    captions = tuple(row.caption for row in rows) if any(row.caption for row in rows) else ()
    label = np.array([number.get(row.label, -1) for row in rows], dtype=np.int64)
    return ImageSet(
        images=images,
        label=label,
        classes=classes,
        group=np.array([of_group.get(row.group, -1) for row in rows], dtype=np.int64) if groups else None,
        groups=groups,
        captions=captions,
        names=tuple(row.name for row in rows),
        flip=flip,
        caption_labels=tell_classes(captions, label, classes),
        targets=tuple(label_column(name, [row.further.get(name, "") for row in rows]) for name in further),
        fold=fold if (fold >= 0).any() else None,
    )
