"""Convolutional encoders: ResNets with torchvision's blocks and parameter names, and the few-shot literature's Conv4.

He, Zhang, Ren & Sun 2015, "Deep residual learning", arXiv:1512.03385; Vinyals et al. 2016, arXiv:1606.04080 (Conv4).
In every encoder here the last map, pooled, is the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.encoder_base import Normalise, check_size, initialise

SMALL_IMAGE = 64
"""Up to this height and width the stem keeps the resolution: 3x3, stride 1, no pooling."""


class ResNet(Encoder):
    """A residual network without its classifier; the embedding is the mean of the last stage over positions."""

    def __init__(
        self,
        shape: Shape,
        mean: Statistics,
        std: Statistics,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        stem: int,
        blocks: Sequence[int],
        widths: Sequence[int],
        stride: int = 1,
    ) -> None:
        """
        Args:
            shape: (C, H, W) of the images; large images get the 7x7 stem with stride 2 and pooling.
            mean, std: of the data, per channel in [0, 1].
            block: torchvision's residual block.
            stem: channels of the first convolution.
            blocks, widths: for each stage its number of blocks and their inner channels; all but the first stage halve H, W.
            stride: of a small image's 3x3 stem; 2 costs a quarter of 1.
        Raises:
            UserError: the images are smaller than 8 x 8.
        """
        super().__init__()
        check_size("a ResNet", shape)
        self.shape = shape
        self.small = max(shape[1:]) <= SMALL_IMAGE
        self.stem, self.blocks, self.widths, self.stride = stem, list(blocks), list(widths), stride
        self.normalise = Normalise(mean, std)
        kernel, step, pad = (3, stride, 1) if self.small else (7, 2, 3)
        self.conv1 = nn.Conv2d(shape[0], stem, kernel, step, pad, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels, stages = stem, []
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            stage = _stage(block, channels, width, count, stride=1 if number == 1 else 2)
            channels = width * block.expansion
            stages.append(f"layer{number}")
            self.add_module(stages[-1], stage)
        self.stages = tuple(stages)
        self.layers = ("stem", *stages)
        self.dim = channels
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self._stem(images)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)  # B c h w
        return x.mean((2, 3))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        found = {"stem": self._stem(images)}
        x = found["stem"]
        for stage in self.stages:
            x = found[stage] = self.get_submodule(stage)(x)
        return found

    def options(self) -> Options:
        return {"stem": self.stem, "blocks": self.blocks, "widths": self.widths, "stride": self.stride}

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith("fc.")}

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        return {"stem": (self.conv1, self.bn1), **{stage: (self.get_submodule(stage),) for stage in self.stages}}

    def _stem(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalise(images))), inplace=True)
        return x if self.small else F.max_pool2d(x, 3, 2, 1)


class Conv4(Encoder):
    """Blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 pooling; the embedding is the last map, flattened.

    Four blocks of 64 channels give D = 64 at 28 x 28 and 256 at 32 x 32. A block stops pooling where its map is one pixel
    high or wide. Images of another size than ``shape`` have their last map averaged to the same grid, so D stays.
    """

    def __init__(
        self, shape: Shape, mean: Statistics, std: Statistics, *, widths: Sequence[int], pools: Sequence[int] | None = None
    ) -> None:
        """
        Args:
            shape, mean, std: of the images.
            widths: channels of each block.
            pools: for each block whether it pools, 1 or 0; all do by default.
        Raises:
            UserError: the images are smaller than 8 x 8.
        """
        super().__init__()
        check_size("a Conv4", shape)
        self.shape = shape
        self.widths = list(widths)
        self.pools = [1] * len(self.widths) if pools is None else list(pools)
        self.normalise = Normalise(mean, std)
        channels = [shape[0], *self.widths]
        self.blocks = nn.ModuleList(_conv_block(*pair) for pair in pairwise(channels))
        self.layers = tuple(f"block{i + 1}" for i in range(len(self.blocks)))
        h, w = shape[1:]
        for pool in self.pools:
            if pool and min(h, w) > 1:
                h, w = h // 2, w // 2
        self.grid = (h, w)
        self.dim = self.widths[-1] * h * w
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maps(images)[self.layers[-1]]  # B c h w
        if x.shape[2:] != self.grid:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return x.flatten(1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        x, found = self.normalise(images), {}
        for name, block, pool in zip(self.layers, self.blocks, self.pools, strict=True):
            x = block(x)
            if pool and min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
            found[name] = x
        return found

    def options(self) -> Options:
        return {"widths": self.widths, "pools": self.pools}

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        return {name: (block,) for name, block in zip(self.layers, self.blocks, strict=True)}


def _stage(block: type[BasicBlock] | type[Bottleneck], channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    out = width * block.expansion
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    rest = (block(out, width) for _ in range(count - 1))
    return nn.Sequential(block(channels, width, stride, shortcut), *rest)


def _conv_block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
