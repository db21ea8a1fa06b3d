"""What an encoder is, which one a study names, and what builds one: the contract that methods and parts rest on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Shape = tuple[int, int, int]
Statistics = tuple[float, ...]
Options = dict[str, int | float | str | list[int]]


class Encoder(nn.Module, ABC):
    """Images to embeddings. Takes uint8, or float in [0, 1], [B, C, H, W]; normalises them inside.

    Attributes:
        dim: D, the embedding's width.
        layers: names of the layers that ``maps`` returns, first to last.
        name: the name that it was built from, or empty.
        shape: (C, H, W) of the images it was built for.
        origin: source and licence of the weights it began from; empty from nothing.
        resizable: whether it may be shown the same images at another size (``EncoderSpec.size``).
    """

    dim: int
    layers: tuple[str, ...]
    name: str = ""
    shape: Shape
    origin: str = ""
    resizable: bool = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """float [B, D]."""

    @abstractmethod
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Every layer's feature map [B, c, h, w], by layer name, first to last."""

    def options(self) -> Options:
        """What its builder needs beyond image shape, statistics and inner encoders to build the same architecture again."""
        return {}

    def composed_of(self) -> tuple[Encoder, ...]:
        """The encoders that it is composed of, in the order in which its builder takes them."""
        return ()

    def translated(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict by its publisher's names, without a classifier, by this encoder's; one by its own names as it is."""
        return dict(state)

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules that make each layer, by layer name; together they hold every parameter. Empty: cannot be cut."""
        return {}


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a study trains and where its weights start.

    Attributes:
        name: a named encoder (``ENCODERS``), ``torchvision/NAME``, ``timm/NAME``, or a file: an exported encoder, a run folder,
            or an ONNX file.
        init: None for the encoder's own weights where it has any, else from nothing; ``none`` for from nothing in any case;
            ``torchvision``; or the path of a weights file or run folder.
        size: pixels a side at which a pretrained encoder is shown the images; None to have it chosen by cost.
        module: a network of one's own, images normalised by the data's statistics [B, C, H, W] -> [B, D] or [B, D, h, w], in
            place of a name; every training begins from a copy of it, weights included.
    """

    name: str = "resnet_small"
    init: str | None = None
    size: int | None = None
    module: nn.Module | None = None


class BuildEncoder(Protocol):
    """Builds a study's encoders."""

    def __call__(self, spec: EncoderSpec, shape: Shape, mean: Statistics, std: Statistics, width: float = 1.0) -> Encoder:
        """A fresh encoder with its starting weights.

        Args:
            spec: which one.
            shape: (C, H, W) of the images.
            mean, std: of the data, per channel in [0, 1].
            width: scales the channels.
        """
