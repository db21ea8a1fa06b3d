"""Weights files: read without running code from them, written whole or not at all, and fitted with an error one can act on."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from methods.parts.files import written_whole
from search_spaces.domains import UserError

WeightsFile = str | Path | BinaryIO
"""A path, or a file object open for bytes; one with a ``name`` is called so in errors."""


def name_of(file: WeightsFile) -> str:
    """What to call a file in an error."""
    return str(file) if isinstance(file, str | Path) else str(getattr(file, "name", "the given file"))


def write_weights(file: WeightsFile, record: Mapping[str, Any]) -> None:
    """Writes tensors and plain values; to a path through a temporary file beside it."""
    if not isinstance(file, str | Path):
        torch.save(dict(record), file)
        return
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        torch.save(dict(record), temporary)


def read_weights(file: WeightsFile) -> dict[str, Any]:
    """The dictionary in a weights file, on the CPU.

    Raises:
        UserError: there is no such file, or it is no weights file.
    """
    path = name_of(file)
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise UserError(f"a weights file must exist, got {path}; check the path")
    if path.endswith(".safetensors"):
        return _safetensors(path)
    try:
        record = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"{path} is not a file of weights and plain values that torch.load can read; export it again"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"a weights file must hold a dictionary, got {type(record).__name__} in {path}; save a state_dict")
    return record


def _safetensors(path: str) -> dict[str, Any]:
    try:
        reader = import_module("safetensors.torch")
    except ImportError as error:
        raise UserError(f"{path} needs safetensors, which is not installed; pip install 'labelwise[safetensors]'") from error
    try:
        found: dict[str, Any] = reader.load_file(path)
    except Exception as error:  # of the package's own
        raise UserError(f"{path} is not a safetensors file ({' '.join(str(error).split())}); export it again") from error
    return found


def cpu_state(module: nn.Module) -> dict[str, Tensor]:
    """The state_dict as tensors of its own on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads ``state`` where it fits exactly.

    Raises:
        UserError: names or shapes differ; the message lists what does not fit.
    """
    own = module.state_dict()
    # Files of before BatchNorm counted its passes lack the counters, which no computation reads.
    state = {**{name: own[name] for name in own if name.endswith("num_batches_tracked")}, **state}
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = [
        f"{what} {_few(names)}"
        for what, names in (("missing", missing), ("unknown", extra), ("of other shape", shapes))
        if names
    ]
    if found:
        raise UserError(f"{source} does not fit this architecture: {'; '.join(found)}; name the architecture it was made with")
    module.load_state_dict(dict(state))


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
