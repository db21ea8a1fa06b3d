"""A trained model as a graph that runs without this package: from images of any size to probabilities and embedding.

N images, C channels that the model was trained on, H height, W width, K classes, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.encoder import Encoder
from methods.parts.augment import weights_along

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in grey (ITU-R 601), as images are read."""

INPUT = "images"


class Portable(nn.Module):
    """uint8 images [N, 3, H, W] of any size to probabilities [N, K], where there is a head, and embedding [N, D].

    The centre of the images, as large as the model's proportions allow, is resized to the size that the model was trained at,
    as ``load_encoder`` does; for a model of grey images their luminance is taken, rounded as in a file.
    """

    def __init__(self, encoder: Encoder, head: nn.Module | None) -> None:
        """
        Args:
            encoder: images to embeddings.
            head: embeddings to logits, or None.
        """
        super().__init__()
        self.encoder, self.head = encoder, head

    @property
    def outputs(self) -> list[str]:
        """Names of what ``forward`` gives, in order."""
        return ["embedding"] if self.head is None else ["probabilities", "embedding"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images.float()
        if self.encoder.shape[0] == 1:
            x = (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True).round()
        z = self.encoder(_at_size(x / 255, self.encoder.shape[1:])).float()
        return (z,) if self.head is None else (self.head(z).float().softmax(1), z)


def _at_size(x: Tensor, own: tuple[int, int]) -> Tensor:
    """The centre of float images [N, C, H, W] at ``own`` height and width; in tensors throughout, so that H and W stay free."""
    full = [torch.scalar_tensor(side, dtype=torch.float64) for side in x.shape[2:]]
    scale = torch.minimum(full[0] / own[0], full[1] / own[1])
    lengths = [side * scale for side in own]
    starts = [(side - length) / 2 for side, length in zip(full, lengths, strict=True)]
    rows, columns = (
        weights_along(start.float()[None], length.float()[None], n, side)
        for start, length, n, side in zip(starts, lengths, own, x.shape[2:], strict=True)
    )  # 1 h H and 1 w W
    return rows @ (x @ columns.transpose(1, 2))
