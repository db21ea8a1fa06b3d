"""Encoders by name, their starting weights, and the file an encoder is exported to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from methods.parts.augment import crop, to_float
from methods.parts.averaged import AveragedEncoder
from methods.parts.cnn import Conv4, ResNet
from methods.parts.composites import LAB_STD, GreyEncoder, LabEncoder
from methods.parts.encoder_base import Encoder, EncoderWrapper, Options, Shape, Statistics, scaled
from methods.parts.framed import FramedEncoder
from methods.parts.framing import paper_of
from methods.parts.joined import JoinedEncoder
from methods.parts.lite0 import SOURCE, Lite0, lite0_weights, renamed
from methods.parts.mirrored import MirroredEncoder
from methods.parts.pair import PairEncoder
from methods.parts.vit import TokenEncoder
from methods.parts.weights import WeightsFile, cpu_state, load_state, name_of, read_weights, write_weights
from search_spaces.domains import UserError, nearest

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "TokenEncoder",
    "build_encoder",
    "load_encoder",
    "parameter_count",
    "save_encoder",
]


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a study trains and where its weights start.

    Attributes:
        name: a key of ``ENCODERS``.
        init: None for the encoder's own weights where it has any, else from nothing; ``none`` for from nothing in any case;
            ``torchvision``; or the path of a weights file or run folder.
        size: pixels a side at which a pretrained encoder is shown the images; None to have it chosen by cost.
    """

    name: str = "resnet_small"
    init: str | None = None
    size: int | None = None


Builder = Callable[[Shape, Statistics, Statistics, float, Options], Encoder]
"""(shape, mean, std, width, options) -> encoder; ``options`` as ``Encoder.options`` gives them override the defaults."""


HALVED = 24
"""Height and width from which the small ResNet's stem halves: a quarter of the cost; smaller images keep what they have."""


def _resnet(block: Any, stem: int, blocks: list[int], widths: list[int], stride: int = 1) -> Builder:
    def builder(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
        chosen: Any = {
            "stem": scaled(stem, width),
            "blocks": blocks,
            "widths": [scaled(w, width) for w in widths],
            "stride": stride if min(shape[1:]) >= HALVED else 1,
            **options,
        }
        return ResNet(shape, mean, std, block=block, **chosen)

    return builder


def _conv4(widths: list[int]) -> Builder:
    def builder(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
        chosen: Any = {"widths": [scaled(w, width) for w in widths], **options}
        return Conv4(shape, mean, std, **chosen)

    return builder


def _vit_tiny(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    heads = 4
    chosen: Any = {"width": 4 * heads * max(1, round(128 * width / (4 * heads))), "depth": 4, "heads": heads, **options}
    return TokenEncoder(shape, mean, std, **chosen)


def _lite0(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    chosen: Any = {"width": width, **options}
    return Lite0(shape, mean, std, **chosen)


def _pair(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    inner = {name: value for name, value in options.items() if name not in ("of", "views")}
    name = str(options.get("of", "resnet_small"))
    first, second = (_build(name, shape, mean, std, width, inner) for _ in range(2))
    return PairEncoder(first, second, mean, std, str(options.get("views", "halves")))


def _inner(options: Options) -> tuple[str, Options]:
    """The name and the options of the encoders inside a composed one."""
    return str(options.get("of", "resnet_small")), {name: value for name, value in options.items() if name != "of"}


def _lab(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    name, inner = _inner(options)
    light, colour = (_build(name, (n, *shape[1:]), (0.5,) * n, LAB_STD[n], width, inner) for n in (1, 2))
    return LabEncoder(light, colour, mean, std)


def _grey(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    name, inner = _inner(options)
    return GreyEncoder(_build(name, shape, mean, std, width, inner))


def _averaged(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    name, inner = _inner({key: value for key, value in options.items() if key != "test_views"})
    views = options["test_views"]
    assert isinstance(views, int)
    return AveragedEncoder(_build(name, shape, mean, std, width, inner), views)


def _framed(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    inner = {key: value for key, value in options.items() if key != "inside"}
    return FramedEncoder(_build(str(options["inside"]), shape, mean, std, width, inner), paper_of(mean))


def _mirrored(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    inner = {key: value for key, value in options.items() if key != MirroredEncoder.key}
    return MirroredEncoder(_build(str(options[MirroredEncoder.key]), shape, mean, std, width, inner))


def _joined(shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    own = ("kind", "members", "unit")
    inner = {name: value for name, value in options.items() if name not in own}
    kind, members, unit = (options[name] for name in own)
    assert isinstance(members, int)
    return JoinedEncoder([_build(str(kind), shape, mean, std, width, inner) for _ in range(members)], bool(unit))


ENCODERS: dict[str, Builder] = {
    "resnet_small": _resnet(BasicBlock, 16, [1, 1, 2], [16, 32, 128], stride=2),
    "conv4": _conv4([64] * 4),
    # As many multiplications as conv4 and four times its embedding, but smaller first maps, which take most of conv4's time.
    "conv4_pyramid": _conv4([16, 64, 128, 256]),
    "vit_tiny": _vit_tiny,
    "resnet18": _resnet(BasicBlock, 64, [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": _resnet(BasicBlock, 64, [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": _resnet(Bottleneck, 64, [3, 4, 6, 3], [64, 128, 256, 512]),
    "lite0": _lite0,
}
COMPOSED: dict[str, Builder] = {
    "pair": _pair, "lab": _lab, "grey": _grey, "averaged": _averaged, "framed": _framed, "joined": _joined,
    "mirrored": _mirrored,
}  # fmt: skip
"""Encoders that methods compose of others: they can be saved and loaded, but are no choice of a study's."""

TORCHVISION = ("resnet18", "resnet34", "resnet50")
"""Encoders that torchvision has trained weights for."""

OWN: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {"lite0": (lite0_weights, SOURCE)}
"""Encoders with weights of their own: what gives their state, and its source and licence in a line."""


def build_encoder(
    spec: EncoderSpec, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...], width: float = 1.0
) -> Encoder:
    """A fresh encoder for images of ``shape``, with the starting weights that ``spec.init`` names.

    Args:
        spec: name and starting weights.
        shape: (C, H, W).
        mean, std: of the data per channel; they stay the data's own, whatever the starting weights were trained with.
        width: scales the channels.
    Raises:
        UserError: an unknown name, images it cannot take, or starting weights that cannot be had or do not fit.
    """
    options: Options = {} if spec.size is None else {"size": spec.size}
    if options and spec.name not in OWN:
        raise UserError(f"encoder {spec.name} sees images as large as they are, got size {spec.size}; leave the size out")
    own = spec.init is None and spec.name in OWN and width == 1
    if spec.init in (None, "none") and not own:
        return _build(spec.name, shape, mean, std, width, options)
    if width != 1:
        raise UserError(f"starting weights fit width 1 only, got width {width:g} with init {spec.init!r}; use init none")
    if own:
        encoder = _build(spec.name, shape, mean, std, width, options)
        load, encoder.origin = OWN[spec.name]
        state = load()
    elif spec.init == "torchvision":
        encoder = _build(spec.name, shape, mean, std, width, options)
        state, encoder.origin = _torchvision_state(spec.name, encoder), f"ImageNet, torchvision's {spec.name} (BSD-3-Clause)"
    else:
        encoder, state = _from_file(spec, shape, mean, std, options)
    # How images are shown is the encoder's own, where a file says nothing of it; the data's statistics are in any case.
    shown, held = (_starting(encoder.state_dict(), prefix) for prefix in ("shown.", "normalise."))
    load_state(encoder, {**shown, **state, **held}, encoder.origin)
    return encoder


def _from_file(
    spec: EncoderSpec, shape: Shape, mean: Statistics, std: Statistics, options: Options
) -> tuple[Encoder, dict[str, Tensor]]:
    """The encoder of a weights file or run folder, and the state to load."""
    assert spec.init is not None
    path = Path(spec.init)
    path = path / "best" / "encoder.pt" if path.is_dir() else path
    record = _bare(read_weights(path))
    name = record.get("encoder", spec.name)
    if name in COMPOSED:
        raise UserError(f"{path} holds an encoder composed of others ({name}), which cannot start a study; give another init")
    if name != spec.name:
        raise UserError(
            f"{path} holds weights of encoder {name}, got encoder {spec.name}; set encoder: {name}, or leave out methods"
            f" that need {spec.name}"
        )
    known = "encoder" in record
    encoder = _build(spec.name, shape, mean, std, 1.0, {**record["options"], **options} if known else options)
    encoder.origin = ", ".join(filter(None, (str(path), record.get("origin", "") if known else "")))
    state = record["state"] if known else _without(record, "fc.")
    return encoder, renamed(state) if name == "lite0" else state


def save_encoder(file: WeightsFile, encoder: Encoder) -> None:
    """Writes a file that ``load_encoder`` can rebuild the encoder from, without any other knowledge.

    Raises:
        UserError: the encoder was not built by name.
    """
    write_weights(file, encoder_record(encoder))


def load_encoder(file: WeightsFile) -> Encoder:
    """The encoder in a file of ``save_encoder``, on the CPU and in evaluation mode.

    Raises:
        UserError: not such a file.
    """
    return encoder_from(read_weights(file), name_of(file))


def encoder_record(encoder: Encoder) -> dict[str, Any]:
    """Name, image shape, statistics, options and state: tensors and plain values only."""
    if encoder.name not in ENCODERS and encoder.name not in COMPOSED:
        raise UserError(f"only encoders built by name can be saved, got {type(encoder).__name__}; use build_encoder")
    mean, std = (encoder.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
    return {
        "encoder": encoder.name,
        "shape": list(encoder.shape),
        "mean": mean,
        "std": std,
        "options": encoder.options(),
        "origin": origin_of(encoder),
        "state": cpu_state(encoder),
    }


def encoder_from(record: dict[str, Any], source: str) -> Encoder:
    """The inverse of ``encoder_record``; ``source`` names it in errors.

    In evaluation mode it resizes images of another size to the one it was trained at, as ``labelwise predict`` does: at
    another scale its embeddings would be of no use. (``maps`` takes images as they are.)
    """
    wanted = ("encoder", "shape", "mean", "std", "options", "state")
    missing = [key for key in wanted if key not in record]
    if missing:
        raise UserError(
            f"{source} is not an exported encoder: it lacks {', '.join(missing)}; use it as init of a named encoder"
        )
    c, h, w = record["shape"]
    encoder = _build(record["encoder"], (c, h, w), tuple(record["mean"]), tuple(record["std"]), 1.0, record["options"])
    load_state(encoder, record["state"], source)
    encoder.origin = record.get("origin", "")
    encoder.register_forward_pre_hook(_at_own_size)
    return encoder.eval()


def _at_own_size(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    """The centre of float or uint8 images [B, C, H, W], as large as the encoder's proportions allow, at its own size."""
    assert isinstance(encoder, Encoder)
    if encoder.training or len(inputs) != 1 or inputs[0].dim() != 4 or inputs[0].shape[2:] == encoder.shape[1:]:
        return None
    (images,) = inputs
    own, given = encoder.shape[1:], images.shape[2:]
    images = images if images.is_floating_point() else images.to(torch.uint8)
    scale = min(given[0] / own[0], given[1] / own[1])
    height, width = own[0] * scale, own[1] * scale
    box = torch.tensor([[(given[0] - height) / 2, (given[1] - width) / 2, height, width]], device=images.device)
    return (crop(to_float(images), box.expand(len(images), 4), own),)


def origin_of(encoder: Encoder) -> str:
    """Source and licence of the weights that it, or an encoder inside it, began from; empty from nothing."""
    return next((part.origin for part in encoder.modules() if isinstance(part, Encoder) and part.origin), "")


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def _build(name: str, shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    builder = ENCODERS.get(name) or COMPOSED.get(name)
    if builder is None:
        raise UserError(f"{name} is not an encoder{nearest(name, ENCODERS)}")
    assert len(mean) == len(std) == shape[0], (shape, mean, std)
    encoder = builder(shape, mean, std, width, options)
    encoder.name = name
    return encoder


AROUND: dict[str, type[EncoderWrapper]] = {kind.name: kind for kind in (AveragedEncoder, FramedEncoder, MirroredEncoder)}


def _bare(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the encoder inside those that average over views or frame; any other record as it is."""
    while (around := AROUND.get(record.get("encoder", ""))) is not None:
        state = {k.removeprefix("inside."): v for k, v in record["state"].items() if k.startswith("inside.")}
        options = {key: value for key, value in record["options"].items() if key not in (around.key, "test_views")}
        record = {**record, "encoder": record["options"][around.key], "options": options, "state": state}
    return record


def _starting(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def _torchvision_state(name: str, encoder: Encoder) -> dict[str, Tensor]:
    if name not in TORCHVISION:
        raise UserError(f"init torchvision is for {', '.join(TORCHVISION)}, got encoder {name}; use init none or one of those")
    try:
        state = get_model_weights(name)["DEFAULT"].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"init torchvision needs {name}'s weights in {torch.hub.get_dir()} or a download, which failed ({reason}); "
            "connect to the internet once or use init none"
        ) from error
    state = _without(dict(state), "fc.")
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
