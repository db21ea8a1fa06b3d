"""A small vision transformer whose patch tokens can be hidden, reordered and looked at (MAE, DINO).

Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929; fixed sine-cosine positions and the choice of mean
pooling as in He et al. 2021, "Masked autoencoders are scalable vision learners", arXiv:2111.06377.

Shapes: B batch, N patches of the image, n patches shown, D embedding, h x w grid of patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.encoder import Encoder, Options, Shape, Statistics
from methods.parts.encoder_base import Normalise, check_size
from search_spaces.domains import UserError

GRID = 8
"""Patches along the longer side that the automatic patch size aims at."""


class TokenEncoder(Encoder):
    """Images as tokens: patches are embedded, given positions, and encoded behind a class token.

    ``forward`` is the mean of the encoded patch tokens (MAE's choice for small models), or the class token where ``pool`` is
    ``cls``: methods that train that token, such as DINO, set it when they build the encoder. It is saved with the encoder.

    Attributes:
        patch: side of a patch in pixels.
        grid: (h, w), patches along each side of an image of ``shape``.
        heads: attention heads.
        pool: ``mean`` or ``cls``.
    """

    def __init__(
        self,
        shape: Shape,
        mean: Statistics,
        std: Statistics,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 0,
        pool: str = "mean",
    ) -> None:
        """
        Args:
            shape, mean, std: of the images.
            width: D, a multiple of 4 * heads.
            depth: transformer blocks.
            heads: attention heads of each block.
            patch: side of a patch in pixels; 0 chooses the one that comes nearest to 8 patches along the longer side.
            pool: what ``forward`` returns, ``mean`` or ``cls``.
        Raises:
            UserError: the image cannot be divided into patches.
        """
        super().__init__()
        check_size("a vision transformer", shape)
        assert width % (4 * heads) == 0, (width, heads)
        self.shape, self.dim, self.heads, self.pool = shape, width, heads, pool
        self.patch = patch or patch_size(shape)
        self.grid = self._grid(*shape[1:])
        self.layers = ("embed", *(f"block{i + 1}" for i in range(depth)))
        self.normalise = Normalise(mean, std)
        self.project = nn.Linear(shape[0] * self.patch**2, width)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encode(self.embed(images))  # B 1+N D
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)

    def embed(self, images: Tensor) -> Tensor:
        """Patch tokens with their positions, float [B, N, D], row by row. Images of other sizes get interpolated positions.

        Raises:
            UserError: the image's sides are not multiples of the patch.
        """
        h, w = self._grid(*images.shape[2:])
        tokens = self.project(patches(self.normalise(images), self.patch))  # B N D
        return tokens + positions((h, w), self.grid, self.dim).to(tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """Any n of the embedded tokens [B, n, D], in any order -> encoded [B, 1 + n, D], the class token first."""
        x = self._with_cls(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def attention(self, images: Tensor) -> Tensor:
        """The last block's attention from the class token to each patch, float [B, heads, N]; the rest goes to itself."""
        x = self._with_cls(self.embed(images))
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return last.attention(x)[:, :, 0, 1:]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Patch tokens as maps [B, D, h, w]; the last is taken after the final normalisation."""
        h, w = self._grid(*images.shape[2:])
        x = self._with_cls(self.embed(images))
        stages = [x]
        for block in self.blocks:
            stages.append(block(stages[-1]))
        stages[-1] = self.norm(stages[-1])
        return {name: x[:, 1:].transpose(1, 2).unflatten(2, (h, w)) for name, x in zip(self.layers, stages, strict=True)}

    def options(self) -> Options:
        return {"width": self.dim, "depth": len(self.blocks), "heads": self.heads, "patch": self.patch, "pool": self.pool}

    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        blocks: list[tuple[nn.Module, ...]] = [(block,) for block in self.blocks]
        blocks[-1] = (*blocks[-1], self.norm)
        return dict(zip(self.layers, [(self.project, nn.ParameterList([self.cls])), *blocks], strict=True))

    def _with_cls(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch or width % self.patch or min(height, width) < self.patch:
            raise UserError(
                f"image sides must be multiples of the patch, {self.patch} pixels, got {height} x {width}; "
                "resize the images or choose a convolutional encoder"
            )
        return height // self.patch, width // self.patch

    def _initialise(self) -> None:
        nn.init.normal_(self.cls, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with its residual: [B, n, D] -> [B, n, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._qkv(x)
        mixed = F.scaled_dot_product_attention(q, k, v)  # B heads n d
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """float32 [B, heads, n, n]: each row sums to 1."""
        q, k, _ = self._qkv(x)
        return (q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


def patches(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, N, C * side * side]: square patches, row by row, each flattened channel by channel."""
    b, c, height, width = x.shape
    h, w = height // side, width // side
    return x.reshape(b, c, h, side, w, side).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, c * side * side)


def unpatch(x: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """The inverse of ``patches``: [B, N, C * side * side] -> [B, C, H, W]."""
    side = math.isqrt(x.shape[2] // channels)
    b, (h, w) = x.shape[0], grid
    return x.view(b, h, w, channels, side, side).permute(0, 3, 1, 4, 2, 5).reshape(b, channels, h * side, w * side)


def positions(grid: tuple[int, int], reference: tuple[int, int], width: int) -> Tensor:
    """float32 [h * w, D]: sines and cosines of each patch's row and column.

    Args:
        grid: (h, w) of the image at hand.
        reference: (h, w) the encoder was built for; other grids are laid over it, so positions are interpolated.
        width: D, a multiple of 4: a quarter each for sine and cosine of row and of column.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    axes = []
    for n, full in zip(grid, reference, strict=True):
        place = (torch.arange(n, dtype=torch.float64) + 0.5) * (full / n) - 0.5
        angle = place[:, None] * frequency  # n D/4
        axes.append(torch.cat([angle.sin(), angle.cos()], dim=1))  # n D/2
    rows, columns = axes
    h, w = grid
    both = torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], dim=2)
    return both.reshape(h * w, width).float()


def patch_size(shape: Shape) -> int:
    """The common divisor of height and width that comes nearest to ``GRID`` patches along the longer side.

    Raises:
        UserError: every divisor gives less than a half or more than the double of ``GRID``.
    """
    _, height, width = shape
    longer = max(height, width)
    divisors = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
    best = min(divisors, key=lambda p: abs(math.log(longer / p / GRID)))
    if not GRID / 2 <= longer / best <= GRID * 2:
        raise UserError(
            f"a vision transformer needs image sides with a common divisor that gives {GRID // 2} to {GRID * 2} patches, "
            f"got {height} x {width}; resize the images or choose a convolutional encoder"
        )
    return best
