"""Text for image-text methods: prompts from class names, and a small transformer.

B captions, L tokens, D embedding. Token 0 pads and marks a missing caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.domains import UserError

TEMPLATES = ("a photo of a {label}", "a picture of a {label}", "an image of the {label}")
"""Prompts in the manner of Radford 2021, arXiv:2103.00020, section 3.1.4."""


def prompts(labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Class by class its prompts, one from each template.

    Raises:
        UserError: a template without a place for the label.
    """
    for template in templates:
        if "{label}" not in template:
            raise UserError(f"a prompt template must contain {{label}}, got {template!r}; write it where the class name goes")
    return [template.format(label=label) for label in labels for template in templates]


class TextBlock(nn.Module):
    """Pre-norm attention among the words of a caption, then an MLP; padding is not attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # B heads L d each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids [B, L] to embeddings [B, D]: the mean over a caption's words after a few transformer blocks.

    Args:
        tokens: how many token ids there are.
        length: the longest caption.
        width, depth, heads: of the transformer; ``width`` is D.
    """

    def __init__(self, tokens: int, length: int, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.01)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens > 0  # B L
        # A missing caption attends to its padding, so that its embedding, which nobody uses, stays finite.
        attended = seen | ~seen.any(1, keepdim=True)
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, attended)
        weight = attended.to(x.dtype)[:, :, None]
        return self.norm((x * weight).sum(1) / weight.sum(1))
