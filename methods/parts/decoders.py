"""Decoders, thrown away after training: embeddings or feature maps back to pixels, tokens back to patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoder import Encoder
from methods.parts.vit import Block, positions


class ImageDecoder(nn.Module):
    """Embeddings [B, D] to images [B, C, H, W] in [0, 1]: a small map, then upsampling by 2 and convolving to full size."""

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.ups = max(int(math.log2(max(min(self.height, self.width), 4) / 4)), 0)
        self.low = (-(-self.height // 2**self.ups), -(-self.width // 2**self.ups))
        first = min(width * 2**self.ups, 128)
        self.start = nn.Linear(dim, first * self.low[0] * self.low[1])
        layers: list[nn.Module] = [nn.BatchNorm2d(first), nn.ReLU()]
        for i in range(self.ups):
            after = max(first // 2 ** (i + 1), 16)
            before = max(first // 2**i, 16) if i else first
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        last = max(first // 2**self.ups, 16) if self.ups else first
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).view(len(z), -1, *self.low)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.layers(x)[:, :, : self.height, : self.width]
        return x.float().sigmoid()


class MapDecoder(nn.Module):
    """A feature map [B, c, h, w] to a map [B, K, H, W] of scores at a given size."""

    def __init__(self, channels: int, out: int, size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        self.size = size
        self.before = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.after = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.scores = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.before(x), self.size, mode="bilinear", align_corners=False)
        scores: Tensor = self.scores(self.after(x))
        return scores.float()


def map_channels(encoder: Encoder) -> dict[str, int]:
    """Channels of each layer's map."""
    training = encoder.training
    with torch.no_grad():
        maps = encoder.eval().maps(torch.zeros(1, *encoder.shape))
    encoder.train(training)
    return {name: x.shape[1] for name, x in maps.items()}


class TokenDecoder(nn.Module):
    """MAE's decoder: tokens of the visible patches, and one learned token for each hidden one, to all patches.

    Args:
        dim: width of the encoder's tokens.
        grid: patches down and across; N in all.
        out: numbers in a patch.
        width, depth: of the decoder.
    """

    positions: Tensor

    def __init__(self, dim: int, grid: tuple[int, int], out: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", positions(grid, grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, max(width // 32, 1)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, out)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Every patch's numbers, float32 [B, N, out].

        Args:
            tokens: float [B, V, D], encoded visible patches in shuffled order.
            restore: int64 [B, N], each patch's place in the shuffled row, visible ones first.
        """
        x = self.embed(tokens)
        b, v, width = x.shape
        n = restore.shape[1]
        x = torch.cat([x, self.hidden.to(x.dtype).expand(b, n - v, width)], dim=1)
        x = x.gather(1, restore[:, :, None].expand(-1, -1, width)) + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        pixels: Tensor = self.pixels(self.norm(x))
        return pixels.float()
