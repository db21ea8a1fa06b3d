"""``labelwise check DATA``: what a person should know of a data set before any study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cluster.storage import LocalStorage
from methods.data.budget import train_data
from methods.data.decode import OnBadImage, Size
from methods.data.records import ImageSet
from methods.data.sources import load
from methods.parts.encoders import EncoderSpec, check_encoder, from_nothing, shown_at
from methods.parts.lite0 import lite0_installed
from methods.parts.modes import threads
from methods.training.on_features import frozen_encoder
from orchestrator.care.files import write_care
from orchestrator.care.find import FEW, find
from orchestrator.care.label_errors import Judged, judged
from orchestrator.care.looks import Looks, Part, part_of
from orchestrator.care.past import past_of
from orchestrator.care.records import Care
from orchestrator.care.sheets import pixels_of
from orchestrator.features import embedded_outside
from search_spaces.domains import UserError

NONE = "none"
"""In place of an encoder: thumbnails alone."""


def default_encoder() -> str:
    """``lite0`` where its package is installed, else ``none``."""
    return "lite0" if lite0_installed() else NONE


def check(
    data: Any,
    out: str | Path | None = None,
    *,
    test: Any = None,
    encoder: str | None = None,
    size: Size | None = None,
    on_bad_image: OnBadImage = "refuse",
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Care:
    """Looks for likely label errors, near duplicates, leaks of test images and odd images. Changes nothing of the data.

    Args:
        data: as a study's.
        out: folder for the lists and picture sheets; None writes nothing.
        test: test images, as a study's; by default those that the data brings.
        encoder: a pretrained encoder, ``none`` for thumbnails alone; by default lite0 where it is installed, else none.
        size, on_bad_image: as a study's.
        seed: of all draws.
        say: told of long work, a line each.
    Raises:
        UserError: data, test or encoder cannot be read or used, or ``out`` cannot be written, in one line.
    """
    folder = None if out is None else Path(out).expanduser()
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the folder of a check must be new or empty, got {folder}; give another --out")
    spec = _spec(default_encoder() if encoder is None else encoder)
    source = load(data, size=size, on_bad_image=on_bad_image)
    train, shape = source.train, source.train.images.shape
    tested = source.test if test is None else load(test, size=shape[1:], channels=shape[0], on_bad_image=on_bad_image).train
    with threads(torch.get_num_threads()):
        parts = [_part("train", train, train, spec, say)] + (
            [] if tested is None else [_part("test", tested, train, spec, say)]
        )
        past = "" if spec is None or tested is None else past_of(spec, [data, test])

        def judge(looks: Looks) -> Judged | None:
            embedding = parts[0].embedding
            values = looks.features[: len(train), None] if embedding is None else embedding
            return judged(values, train.label, len(train.classes), seed)

        care = find(parts, "" if spec is None else _named(spec, train), judge, FEW, seed, past)
    if folder is not None:
        write_care(LocalStorage(folder), "", care, pixels_of(parts))
    return care


def _spec(encoder: str) -> EncoderSpec | None:
    if encoder == NONE:
        return None
    check_encoder(encoder)
    spec = EncoderSpec(encoder)
    if from_nothing(spec):
        raise UserError(
            f"a check needs an encoder with weights of its own, got {encoder}; give lite0, torchvision/NAME, timm/NAME, a file"
            " or none"
        )
    return spec


def _part(name: str, data: ImageSet, train: ImageSet, spec: EncoderSpec | None, say: Callable[[str], None]) -> Part:
    if spec is None:
        return part_of(name, data)
    return part_of(name, data, embedded_outside(spec, train_data(train, train.label), data.images, f"{name} images", say))


def _named(spec: EncoderSpec, train: ImageSet) -> str:
    size = shown_at(frozen_encoder(spec, train_data(train, train.label)))
    return f"embeddings of {spec.name}" + ("" if size is None else f" at {size[0]}×{size[1]} pixels")
