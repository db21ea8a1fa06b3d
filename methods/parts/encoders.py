"""A study's encoder: which one, and the weights it begins from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from methods.encoder import Encoder, EncoderSpec, Options, Shape, Statistics
from methods.parts.architectures import COMPOSED, ENCODERS, LIBRARIES, architecture, is_named
from methods.parts.backbone import BackboneEncoder
from methods.parts.encoder_files import (
    Record,
    bare,
    can_be_saved,
    current,
    encoder_from,
    encoder_record,
    load_encoder,
    origin_of,
    save_encoder,
)
from methods.parts.libraries import (
    TIMM,
    TORCHVISION,
    published,
    timm_source,
    timm_weights,
    torchvision_source,
    torchvision_weights,
)
from methods.parts.lite0 import SOURCE, lite0_weights
from methods.parts.onnx_file import SUFFIX, onnx_encoder
from methods.parts.vit import TokenEncoder
from methods.parts.weights import load_state, read_weights
from search_spaces.domains import UserError, nearest

__all__ = [
    "ENCODERS",
    "LIBRARIES",
    "WITH_WEIGHTS",
    "Encoder",
    "EncoderSpec",
    "TokenEncoder",
    "build_encoder",
    "can_be_saved",
    "check_encoder",
    "encoder_from",
    "encoder_record",
    "from_nothing",
    "has_weights",
    "is_file",
    "load_encoder",
    "only_frozen",
    "origin_of",
    "parameter_count",
    "save_encoder",
    "shown_at",
    "start_of",
]

WITH_WEIGHTS = ("resnet18", "resnet34", "resnet50")
"""Our own encoders that torchvision's weights fit."""


@dataclass(frozen=True)
class Published:
    """Weights that an encoder's makers published.

    Attributes:
        load: gives the state by its publisher's names.
        source: what they were trained on, where they come from and their licence, in a line.
    """

    load: Callable[[], dict[str, Tensor]]
    source: str


def has_weights(name: str) -> bool:
    """Whether its makers published weights of the encoder of that name, from which it starts by itself."""
    return name == "lite0" or name.startswith((TORCHVISION, TIMM))


def is_file(name: str) -> bool:
    """Whether it names a file or a run folder with an encoder and its weights, and no encoder."""
    return not is_named(name)


def only_frozen(spec: EncoderSpec) -> bool:
    """Whether it cannot be trained."""
    return is_file(spec.name) and spec.name.endswith(SUFFIX)


def from_nothing(spec: EncoderSpec) -> bool:
    """Whether it starts from fresh weights."""
    if spec.module is not None or is_file(spec.name):
        return False
    return spec.init == "none" or (spec.init is None and not has_weights(spec.name))


def published_of(name: str) -> Published | None:
    """An encoder's own weights, or None where it has none."""
    if name == "lite0":
        return Published(lite0_weights, SOURCE)
    if name.startswith(TORCHVISION):
        return Published(partial(torchvision_weights, name), torchvision_source(name))
    if name.startswith(TIMM):
        return Published(partial(timm_weights, name), timm_source(name))
    return None


def check_encoder(name: str) -> None:
    """Raises UserError where a name stands for no encoder and no file; names of timm are left to the building."""
    if name.startswith(TORCHVISION):
        published(name)
    elif not is_named(name) and not Path(name).exists():
        raise UserError(f"{name} is not an encoder{nearest(name, ENCODERS)}")


def start_of(spec: EncoderSpec) -> str:
    """What the encoder starts from, for people: source and licence of its own weights, a path, or ``none``."""
    if spec.module is not None:
        return "the weights it was given with"
    if spec.init == "torchvision" and spec.name in WITH_WEIGHTS:
        return torchvision_source(spec.name)
    own = published_of(spec.name) if spec.init in (None, "torchvision") else None
    return own.source if own is not None else spec.init or "none"


def build_encoder(spec: EncoderSpec, shape: Shape, mean: Statistics, std: Statistics, width: float = 1.0) -> Encoder:
    """A fresh encoder for images of ``shape``, with the starting weights that ``spec.init`` names.

    Args:
        spec: which one, and its starting weights.
        shape: (C, H, W).
        mean, std: of the data per channel; they stay the data's own, whatever the starting weights were trained with.
        width: scales the channels.
    Raises:
        UserError: an unknown name, images it cannot take, or starting weights that cannot be had or do not fit.
    """
    if spec.module is not None:
        return _own_module(spec, spec.module, shape, mean, std, width)
    if spec.name.endswith(SUFFIX) and Path(spec.name).is_file():
        _leave_out(spec, width, "an ONNX file", ("init",))
        return onnx_encoder(Path(spec.name), shape, mean, std, spec.size)
    spec = _named(spec)
    own = published_of(spec.name)
    options: Options = {} if spec.size is None else {"size": spec.size}
    if options and own is None:
        raise UserError(f"encoder {spec.name} sees images as large as they are, got size {spec.size}; leave the size out")
    if spec.init == "none" or (spec.init is None and (own is None or width != 1)):
        return architecture(spec.name, shape, mean, std, width, options)
    if width != 1:
        raise UserError(f"starting weights fit width 1 only, got width {width:g} with init {spec.init!r}; use init none")
    if spec.init not in (None, "torchvision"):
        encoder, state = _from_file(spec, shape, mean, std, options)
    else:
        encoder = architecture(spec.name, shape, mean, std, width, options)
        if own is not None:
            state, encoder.origin = encoder.translated(own.load()), own.source
        else:
            state, encoder.origin = _torchvision_state(spec.name, encoder), torchvision_source(spec.name)
    # How images are shown is the encoder's own, where a file says nothing of it; the data's statistics are in any case.
    shown, held = (_starting(encoder.state_dict(), prefix) for prefix in ("shown.", "normalise."))
    load_state(encoder, {**shown, **state, **held}, encoder.origin)
    return encoder


def shown_at(encoder: Encoder) -> tuple[int, int] | None:
    """Height and width in pixels at which it, or the encoder inside it, shows itself the images; None as they are."""
    for part in encoder.modules():
        if isinstance(part, Encoder) and not part.composed_of():
            size: Any = part.options().get("size")
            sized = isinstance(size, list) and (part.resizable or tuple(size) != part.shape[1:])
            return (size[0], size[1]) if sized else None
    return None


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _named(spec: EncoderSpec) -> EncoderSpec:
    """A spec whose name is a file's as one by name, which begins from that file."""
    if is_named(spec.name) or not Path(spec.name).exists():
        return spec
    if spec.init is not None:
        raise UserError(f"encoder {spec.name} is a file with weights of its own, got init {spec.init!r}; leave init out")
    record = _record(Path(spec.name))
    if "encoder" not in record:
        raise UserError(f"{spec.name} holds weights but names no architecture; set encoder to its name and init to this file")
    return replace(spec, name=record["encoder"], init=spec.name)


def _record(path: Path) -> Record:
    """What stands in a weights file or a run folder, without what only changes how images are seen."""
    return bare(current(read_weights(path / "best" / "encoder.pt" if path.is_dir() else path)))


def _from_file(
    spec: EncoderSpec, shape: Shape, mean: Statistics, std: Statistics, options: Options
) -> tuple[Encoder, dict[str, Tensor]]:
    """The encoder of a weights file or run folder, and the state to load."""
    assert spec.init is not None
    path = Path(spec.init)
    record = _record(path)
    name, known = record.get("encoder", spec.name), "encoder" in record
    path = path / "best" / "encoder.pt" if path.is_dir() else path
    if name in COMPOSED:
        raise UserError(f"{path} holds an encoder composed of others ({name}), which cannot start a study; give another init")
    if name != spec.name:
        raise UserError(
            f"{path} holds weights of encoder {name}, got encoder {spec.name}; set encoder: {name}, or leave out methods"
            f" that need {spec.name}"
        )
    encoder = architecture(spec.name, shape, mean, std, 1.0, {**record["options"], **options} if known else options)
    encoder.origin = ", ".join(filter(None, (str(path), record.get("origin", "") if known else "")))
    return encoder, record["state"] if known else encoder.translated(_without(record, "inside"))


def _own_module(spec: EncoderSpec, module: nn.Module, shape: Shape, mean: Statistics, std: Statistics, width: float) -> Encoder:
    """A copy of a network of one's own as an encoder."""
    _leave_out(spec, width, "a module of your own", ("init", "size"))
    module = copy.deepcopy(module)
    return module if isinstance(module, Encoder) else BackboneEncoder(shape, mean, std, module, None)


def _leave_out(spec: EncoderSpec, width: float, what: str, fields: tuple[str, ...]) -> None:
    """Raises UserError where a spec says what such an encoder has by itself."""
    for field in fields:
        value = getattr(spec, field)
        if value is not None:
            raise UserError(f"{what} has {field} of its own, got {field} {value!r}; leave it out")
    if width != 1:
        raise UserError(f"{what} comes in one width, got width {width:g}; leave out the method, or set its width to 1")


def _starting(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def _without(record: Record, key: str) -> Record:
    return {name: value for name, value in record.items() if name != key}


def _torchvision_state(name: str, encoder: Encoder) -> dict[str, Tensor]:
    if name not in WITH_WEIGHTS:
        raise UserError(f"init torchvision is for {', '.join(WITH_WEIGHTS)}, got encoder {name}; use init none or one of those")
    state = encoder.translated(torchvision_weights(name))
    state["conv1.weight"] = _adapted_stem(state["conv1.weight"], encoder.get_parameter("conv1.weight"))
    return state


def _adapted_stem(kernel: Tensor, like: Tensor) -> Tensor:
    """The first convolution's kernel for other images: its centre for the small stem, its colours spread over other channels.

    One channel gets the sum over colours, so a grey image answers as it did in colour; other numbers get the mean, scaled so
    that the answer keeps its size.
    """
    cut = (kernel.shape[2] - like.shape[2]) // 2
    if cut:
        kernel = kernel[:, :, cut:-cut, cut:-cut]
    channels = like.shape[1]
    if channels != kernel.shape[1]:
        kernel = kernel.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return kernel.clone()
