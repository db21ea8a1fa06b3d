"""What a report says of a study's encoders: where each starts, how large it is shown the images, and what was embedded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from methods.data.records import TrainData
from methods.parts.encoders import EncoderSpec, build_encoder, has_weights, is_file, shown_at
from orchestrator.engine.records import FeatureTable
from orchestrator.prepare import Prepared
from orchestrator.study.encoders import line_of
from search_spaces.domains import UserError


@dataclass(frozen=True)
class EncoderRow:
    """An encoder as the report shows it.

    Attributes:
        label: by which the study compares it; blank where there is one.
        line: its name and what it starts from.
        shown: at which size it is shown the images, in words; blank where it sees them as they are.
        frozen: of which views features were embedded, and at which size where that is another, in words; blank where none were.
    """

    label: str
    line: str
    shown: str
    frozen: str


def encoder_rows(prepared: Prepared, tables: Sequence[FeatureTable]) -> list[EncoderRow]:
    """One row an encoder: those that the study compares, or the only one."""
    compared = prepared.study.compared(prepared.methods)
    specs = list(compared.items()) or [("", prepared.study.encoders()[0])]
    trains = not all(method.on_features for method in prepared.methods.values())
    found = []
    for label, spec in specs:
        table = next((table for table in tables if table.asked == spec), None)
        size = _size_of(spec, prepared.split.train) if trains or table is None else table.size
        shown = "" if size is None else f"shown images of {size[0]}×{size[1]} pixels"
        found.append(EncoderRow(label, line_of(spec), shown, "" if table is None else _frozen(table, size)))
    return found


def _frozen(table: FeatureTable, size: tuple[int, int] | None) -> str:
    views = "each image and its mirror image" if table.views == 2 else "each image"
    other = f" at {table.size[0]}×{table.size[1]} pixels" if table.size not in (None, size) and table.size else ""
    return f"frozen features of {views}{other}"


def _size_of(spec: EncoderSpec, data: TrainData) -> tuple[int, int] | None:
    return _built_size(spec, data.images.shape, data.mean, data.std)


@lru_cache(maxsize=32)
def _built_size(
    spec: EncoderSpec, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[int, int] | None:
    """Of an encoder built to be asked; None where it sees images as they are, or cannot be built here (any more)."""
    if spec.module is not None or not (has_weights(spec.name) or is_file(spec.name)):
        return None
    # The size does not depend on weights, which need not be loaded but where a file alone names the architecture.
    asked = spec if is_file(spec.name) else replace(spec, init="none")
    try:
        with torch.random.fork_rng():
            return shown_at(build_encoder(asked, shape, mean, std))
    except UserError:
        return None
