"""Encoders by name, as architectures with fresh weights: our own, other libraries', and those composed of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torchvision.models.resnet import BasicBlock, Bottleneck

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.averaged import AveragedEncoder
from methods.parts.cnn import Conv4, ResNet
from methods.parts.composites import GreyEncoder, LabEncoder
from methods.parts.encoder_base import scaled
from methods.parts.framed import FramedEncoder
from methods.parts.framing import paper_of
from methods.parts.joined import JoinedEncoder
from methods.parts.libraries import TIMM, TORCHVISION, from_timm, from_torchvision
from methods.parts.lite0 import Lite0
from methods.parts.mirrored import MirroredEncoder
from methods.parts.onnx_file import OnnxEncoder, onnx_again
from methods.parts.pair import PairEncoder
from methods.parts.vit import TokenEncoder
from search_spaces.domains import UserError, nearest

Builder = Callable[[Shape, Statistics, Statistics, float, Options], Encoder]
"""(shape, mean, std, width, options) -> encoder; ``options`` as ``Encoder.options`` gives them override the defaults."""

Composer = Callable[[Sequence[Encoder], Statistics, Statistics, Any], Encoder]
"""(inner encoders, mean, std, options) -> encoder."""

Library = Callable[[str, Shape, Statistics, Statistics, Options], Encoder]
"""(name, shape, mean, std, options) -> encoder."""

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
COMPOSED: dict[str, Composer] = {
    "pair": lambda inner, mean, std, options: PairEncoder(inner[0], inner[1], mean, std, options["views"]),
    "lab": lambda inner, mean, std, options: LabEncoder(inner[0], inner[1], mean, std),
    "grey": lambda inner, mean, std, options: GreyEncoder(inner[0]),
    "averaged": lambda inner, mean, std, options: AveragedEncoder(inner[0], options["test_views"]),
    "framed": lambda inner, mean, std, options: FramedEncoder(inner[0], paper_of(mean)),
    "joined": lambda inner, mean, std, options: JoinedEncoder(inner, bool(options["unit"])),
    "mirrored": lambda inner, mean, std, options: MirroredEncoder(inner[0]),
}
"""Encoders that methods compose of others: they can be saved and loaded, but are no choice of a study's."""

AROUND = ("averaged", "framed", "mirrored")
"""Those that only change how one encoder is shown images; its weights may start a study."""

LIBRARIES: dict[str, Library] = {TORCHVISION: from_torchvision, TIMM: from_timm, OnnxEncoder.name: onnx_again}
"""By the beginning of a name: networks of other makers, which come in one width."""


def is_named(name: str) -> bool:
    """Whether it is a name that an encoder can be built from, and no file."""
    return name in ENCODERS or name.startswith(tuple(LIBRARIES))


def architecture(name: str, shape: Shape, mean: Statistics, std: Statistics, width: float, options: Options) -> Encoder:
    """An encoder with fresh weights, by a name that stands for no composition.

    Raises:
        UserError: an unknown name, a width that it does not come in, or images that it cannot take.
    """
    assert len(mean) == len(std) == shape[0], (shape, mean, std)
    library = next((build for prefix, build in LIBRARIES.items() if name.startswith(prefix)), None)
    if library is not None:
        if width != 1:
            raise UserError(f"{name} comes in one width, got width {width:g}; leave out the method, or set its width to 1")
        encoder: Encoder = library(name, shape, mean, std, options)
    elif name in ENCODERS:
        encoder = ENCODERS[name](shape, mean, std, width, options)
    else:
        raise UserError(f"{name} is not an encoder{nearest(name, ENCODERS)}")
    encoder.name = name
    return encoder
