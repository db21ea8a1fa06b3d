"""Encoders: images -> embeddings. STUB CONTRACT, to be completed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a study trains and where its weights start.

    Attributes:
        name: a key of ``ENCODERS``.
        init: ``none``, ``torchvision``, or the path of a weights file or run folder.
    """

    name: str = "resnet_small"
    init: str = "none"


class Encoder(nn.Module, ABC):
    """Images to embeddings. Takes uint8, or float in [0, 1], [B, C, H, W]; normalises by the data's mean and std inside.

    Attributes:
        dim: D, the embedding's width.
        layers: names of the layers that ``maps`` returns, first to last.
    """

    dim: int
    layers: tuple[str, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """float [B, D]."""

    @abstractmethod
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Every layer's feature map [B, c, h, w], by layer name, first to last."""


def build_encoder(
    spec: EncoderSpec, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...], width: float = 1.0
) -> Encoder:
    raise NotImplementedError
