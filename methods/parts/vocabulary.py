"""Visual words: k-means over local features, and the histogram of words in an image.

Gidaris, Bursuc, Komodakis, Perez & Cord 2020, "Learning representations by predicting bags of visual words", arXiv:2002.12247.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.data.records import Images
from methods.parts.encoders import Encoder


def k_means(x: Tensor, clusters: int, rounds: int = 20) -> Tensor:
    """float [K, D]: centres of the rows of ``x`` [M, D], from K of them at random (torch's global generator).

    Lloyd's algorithm; a cluster that loses all its rows keeps its centre.
    """
    centres = x[torch.randperm(len(x), device="cpu")[:clusters].to(x.device)].clone()
    for _ in range(rounds):
        word = nearest(x, centres)
        total = torch.zeros_like(centres).index_add_(0, word, x)
        count = torch.bincount(word, minlength=len(centres))[:, None]
        centres = torch.where(count > 0, total / count.clamp_min(1), centres)
    return centres


def nearest(x: Tensor, centres: Tensor, rows: int = 65536) -> Tensor:
    """int64 [M]: the nearest centre [K, D] of every row of ``x`` [M, D]."""
    half = centres.square().sum(1) / 2
    return torch.cat([(half - part @ centres.T).argmin(1) for part in x.split(rows)])


@torch.no_grad()
def local_features(encoder: Encoder, layer: str, images: Images, sample: int, device: torch.device) -> Tensor:
    """float [M, c]: features of ``layer`` at every place of ``sample`` evenly spaced images, the encoder in evaluation mode."""
    training = encoder.training
    encoder.eval()
    index = torch.linspace(0, len(images) - 1, min(len(images), sample)).long()
    parts = [encoder.maps(images.take(some).to(device))[layer].float() for some in index.split(256)]
    encoder.train(training)
    return torch.cat([x.flatten(2).transpose(1, 2).flatten(0, 1) for x in parts])


class Vocabulary(nn.Module):
    """K visual words.

    Attributes:
        words: float [K, D].
    """

    words: Tensor

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words)

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """Bags of words, float32 [B, K] that sum to 1, of feature maps [B, D, h, w]."""
        x = maps.float().flatten(2).transpose(1, 2)  # B P D
        word = nearest(x.flatten(0, 1), self.words).view(x.shape[:2])  # B P
        return F.one_hot(word, len(self.words)).float().mean(1)
