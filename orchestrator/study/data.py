"""The fields of a study's images: where they are and how they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, WithJsonSchema, field_validator

from orchestrator.study.fields import Strict

_PLACES: list[dict[str, Any]] = [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


class DataFields(Strict):
    """Where the images are and how they are read.

    Attributes:
        data: path of a folder, zip or npz; an embedded or torchvision name; several of these in a list; or, in Python, a
            tuple of arrays (images, labels).
        test: test images: a path or name, a share of ``data`` in (0, 1), or None for a stratified holdout; after ``none`` (only
            few-shot) no test is made.
        size: images are resized to this many pixels; None keeps or chooses as ``methods.data`` says.
        on_bad_image: ``refuse`` a data set with an unreadable image, or ``skip`` such images and name them.
    """

    data: Annotated[Any, WithJsonSchema({"anyOf": _PLACES})]
    test: Annotated[Any, WithJsonSchema({"anyOf": [*_PLACES, _SHARE, {"type": "null"}]})] = None
    size: int | None = Field(None, ge=4, le=1024)
    on_bad_image: Literal["refuse", "skip"] = "refuse"

    @field_validator("data", "test")
    @classmethod
    def _known_kind(cls, value: object, info: Any) -> object:
        if isinstance(value, Path):
            return str(value)
        several = isinstance(value, list | tuple) and len(value) > 0
        several = several and all(isinstance(v, str | os.PathLike | np.ndarray) for v in cast(Sequence[object], value))
        share = info.field_name == "test" and (value is None or isinstance(value, float))
        if not (isinstance(value, str) or several or share):
            raise ValueError("must be a path, a name, a list of them or a tuple of arrays")
        return value

    def plain_data(self) -> Any:
        """``data`` for a run folder, which holds no arrays."""
        arrays = any(isinstance(v, np.ndarray) for v in (self.data if isinstance(self.data, tuple) else ()))
        return "(arrays given in Python)" if arrays else self.data
