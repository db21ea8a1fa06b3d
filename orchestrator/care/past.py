"""What an encoder may have seen before a study: a rule on names, since nobody hands out the images that weights come from.

Weights say what they were trained on in their record (``EncoderSpec``, ``start_of``): a public collection, or an earlier run
folder. Where the data at hand is known to be taken from there, the test images may have been among them; anywhere else it
cannot be known, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from methods.parts.encoders import EncoderSpec, from_nothing, start_of
from orchestrator.folder import RunFolder
from orchestrator.study.encoders import label_of

TAKEN_FROM: Mapping[str, tuple[str, ...]] = {"ImageNet": ("imagenet", "imagenette", "imagewoof", "stl10")}
"""Public collections that weights are trained on, and names of data sets whose images are taken from them."""


def past_of(spec: EncoderSpec, data: Sequence[Any]) -> str:
    """The sentence; blank where the encoder starts from nothing.

    Args:
        spec: the encoder that answers.
        data: what the study's images and test images are: names, paths, lists of these, or anything else.
    """
    if from_nothing(spec):
        return ""
    places = [str(each) for given in data for each in (given if isinstance(given, list) else [given]) if _is_place(each)]
    source, name = start_of(spec), label_of(spec)
    if source == "none":
        source = spec.name
    begins, ends = f"Encoder {name}, starting from {source}, may have seen the test images", "The test then says too much."
    if set(places) & set(_data_of(spec)):
        return f"{begins}: that is an earlier study of the same data. {ends}"
    for collection, names in TAKEN_FROM.items():
        taken = next((place for place in places if _is_one_of(place, names)), None)
        if collection in source and taken is not None:
            return f"{begins}: those of {Path(taken).name} are taken from {collection}. {ends}"
    return f"{begins} if they come from there, which cannot be known here. {ends}"


def _is_one_of(name: str, names: Sequence[str]) -> bool:
    """Whether a name or path has one of ``names`` in its last part, however that is written."""
    plain = re.sub(r"[^a-z0-9]", "", Path(name).name.lower())
    return any(each in plain for each in names)


def _data_of(spec: EncoderSpec) -> list[str]:
    """Data and test of the run folder whose weights these are, or nothing."""
    folder = Path(spec.init or spec.name)
    if not (folder / RunFolder.STUDY).is_file():
        return []
    # Two fields of plain YAML: the rest may name code that is not here.
    study = yaml.safe_load((folder / RunFolder.STUDY).read_text(encoding="utf-8"))
    return [str(study[field]) for field in ("data", "test") if isinstance(study, dict) and _is_place(study.get(field))]


def _is_place(value: object) -> bool:
    return isinstance(value, str | Path)
