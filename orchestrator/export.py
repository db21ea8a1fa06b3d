"""The winner as one file that runs without this package: ONNX, torch.export, or weights for whoever rebuilds the network."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.storage import Storage
from methods.parts.encoder_files import encoder_record
from methods.parts.files import write_text, written_whole
from methods.parts.heads import head_record
from methods.parts.portable import INPUT, Portable
from orchestrator.prepare import prepare
from orchestrator.result import Best, Result
from orchestrator.study import StudyError
from search_spaces.domains import UserError, nearest

CLOSE = 1e-4
"""The largest difference of a probability, or of an embedding relative to the largest value in it, that an export may have."""

CHECKED, BATCH = 256, 32
"""Images that an export is checked on, and how many at a time."""

CLASSES = "classes"
"""Key of the class names, a JSON list, in the metadata."""


@dataclass(frozen=True)
class Exported:
    """A file, and in words what it was checked on."""

    path: Path
    checked: str


Answers = Sequence[np.ndarray]
Write = Callable[[Path, Portable, Tensor, dict[str, str]], Callable[[Tensor], Answers]]
"""Writes a file and gives what answers in its place: (temporary path, model, example images, metadata) -> images -> outputs."""


def export(
    target: str | Path | Storage, format: str = "onnx", out: str | Path | None = None, imports: Sequence[str] = ()
) -> Exported:
    """Writes a run folder's winner to one file.

    ``onnx`` and ``torch`` (a torch.export program, which holds pickled code: it is written here and never read) take
    ``images``, uint8 [N, 3, H, W] of any size, and give ``probabilities`` [N, K], calibrated (none after a few-shot study), and
    ``embedding`` [N, D]. Resizing and normalisation are inside, and the class names are a JSON list in the metadata. What is
    written is compared with the model on the study's test images. ``safetensors`` writes the weights, and beside them a JSON
    file that says how the network is built.

    Args:
        target: the run folder.
        format: one of ``FORMATS``.
        out: the file, which must not exist yet; None for ``model.SUFFIX`` in the run folder.
        imports: modules that may be imported where the study names code of one's own.
    Raises:
        UserError: no winner, an unknown format, an extra that is not installed, an operation that cannot be exported, or a file
            that would answer otherwise than the model.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {format}{nearest(format, FORMATS)}")
    result = Result.open(target)
    study = result.run.load_study(imports) if imports else None
    best = result.winner()
    suffix, write = FORMATS[format]
    path = Path(out) if out is not None else result.folder / f"model{suffix}"
    if path.exists():
        raise StudyError(f"{path} exists already; give another --out")
    if not path.parent.is_dir():
        raise StudyError(f"{path} cannot be written: {path.parent} is no folder; make it, or give another --out")
    model = portable(best)
    if write is None:
        return _weights(best, model, path)
    images, what = _images(result, model, study)
    about = {CLASSES: json.dumps(list(best.classes))} if best.classifies else {}
    about |= {"method": best.method, "encoder": json.dumps(dict(best.encoder))}
    with written_whole(path) as temporary:
        with _operation_named(best.method, format):
            answer = write(temporary, model, torch.zeros(2, 3, *_not_own(model), dtype=torch.uint8), about)
        most = _largest_difference(model, answer, images)
    return Exported(path, f"{what}: the same answers, to {most:.1g}")


def portable(best: Best) -> Portable:
    """The winner with its preprocessing, on the CPU and in evaluation mode."""
    if not best.classifies:
        return Portable(best.load_encoder(), None).eval()
    predictor: Any = best.load_predictor()
    return Portable(predictor.encoder, predictor.head).eval()


def _not_own(model: Portable) -> tuple[int, int]:
    """A size that is not the model's own, so that nothing of it is taken for fixed."""
    _, height, width = model.encoder.shape
    return height + 5, width + 9


def _images(result: Result, model: Portable, study: Any) -> tuple[list[Tensor], str]:
    """uint8 [n, 3, H, W] to check on: the study's test images at their size and blown up; noise where they are not at hand."""
    try:
        test = prepare(study or result.run.load_study(), weights=False).split.test
    except UserError:
        test = None
    if test is None:
        shape, random = (BATCH, 3, *_not_own(model)), torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        return [noise], f"checked on {BATCH} images of noise, since the test images are not at hand"
    rows = np.unique(np.linspace(0, len(test) - 1, min(CHECKED, len(test))).round().astype(int))
    x = test.data.images.take(torch.from_numpy(test.index[rows]))
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    larger = x[:4].repeat_interleave(2, 2).repeat_interleave(3, 3)
    return [*x.split(BATCH), larger], f"checked on {len(rows)} test images"


def _largest_difference(model: Portable, answer: Callable[[Tensor], Answers], images: Sequence[Tensor]) -> float:
    """Between the model's outputs and the file's. Raises UserError where it is too large, or a class is another."""
    most = 0.0
    for x in images:
        with torch.no_grad():
            wanted = [output.numpy() for output in model(x)]
        for name, own, found in zip(model.outputs, wanted, answer(x), strict=True):
            scale = 1.0 if name == "probabilities" else max(1.0, float(np.abs(own).max()))
            gap = float(np.abs(own - found).max()) / scale
            if not gap <= CLOSE:
                raise UserError(
                    f"the file must answer as the model does, to {CLOSE:g}, and its {name} differ by {gap:.1e};"
                    " try another format"
                )
            most = max(most, gap)
    return most


def _program(model: Portable, example: Tensor) -> Any:
    """The model as a graph; number, height and width of the images stay free."""
    free = {name: torch.export.Dim(name) for name in ("number", "height", "width")}
    shapes = {INPUT: {0: free["number"], 2: free["height"], 3: free["width"]}}
    return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)


def _onnx(path: Path, model: Portable, example: Tensor, about: dict[str, str]) -> Callable[[Tensor], Answers]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _needed(package, "export")
    program: Any = torch.onnx.export(
        _program(model, example), (), dynamo=True, input_names=[INPUT], output_names=model.outputs, verbose=False
    )
    program.model.metadata_props.update(about)
    program.save(str(path), external_data=False)
    options = import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = import_module("onnxruntime").InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(model.outputs, {INPUT: x.numpy()})


def _torch(path: Path, model: Portable, example: Tensor, about: dict[str, str]) -> Callable[[Tensor], Answers]:
    program = _program(model, example)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={f"{name}.json": text for name, text in about.items()})
    run = program.module()
    return lambda x: [output.detach().numpy() for output in run(x)]


def _weights(best: Best, model: Portable, path: Path) -> Exported:
    """The weights, and beside them how the network is built."""
    safetensors = _needed("safetensors.torch", "safetensors")
    encoder = encoder_record(model.encoder)
    head = head_record(model.head) if model.head is not None else {"layers": None, "head": {}}
    states: dict[str, dict[str, Tensor]] = {"encoder": encoder.pop("state"), "head": head["head"]}
    tensors = {f"{part}.{name}": tensor.contiguous() for part, state in states.items() for name, tensor in state.items()}
    scaling = best.calibration
    about = {
        "encoder": encoder,
        "head": head["layers"],
        "temperature": None if scaling is None else scaling.temperature,
        CLASSES: list(best.classes) if best.classifies else None,
        "method": best.method,
        "knobs": dict(best.config),
    }
    beside = path.with_suffix(".json")
    if beside.exists():
        raise StudyError(f"{beside} exists already; give another --out")
    with written_whole(path) as temporary:
        safetensors.save_file(tensors, str(temporary))
    write_text(beside, json.dumps(about, indent=2))
    return Exported(path, f"how the network is built stands in {beside.name}")


FORMATS: dict[str, tuple[str, Write | None]] = {
    "onnx": (".onnx", _onnx),
    "torch": (".pt2", _torch),
    "safetensors": (".safetensors", None),
}
"""By name: the file's suffix, and what writes a graph."""


def _needed(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise UserError(f"this export needs {name}, which is not installed; pip install 'labelwise[{extra}]'") from error


@contextmanager
def _operation_named(method: str, format: str) -> Iterator[None]:
    """Turns what an exporter raises into one line that names the operation, and silences what it tells on the way."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # the exporters raise errors of many kinds, all of which say that something cannot be exported
        what = operation_of(error)
        raise UserError(f"the winner ({method}) cannot be exported as {format}: {what}; try another format") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def operation_of(error: BaseException) -> str:
    """The operation that an exporter stumbled over, else the first line of the first error."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    for each in chain:
        found = re.search(r"\b(?:torch\.ops\.)?((?:aten|prims|torchvision|quantized)[.:]+\w+)", str(each))
        if found:
            return f"operation {found[1].replace('::', '.')} has no counterpart"
    return (str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__])[0].rstrip(".")
