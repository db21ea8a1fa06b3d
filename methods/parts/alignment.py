"""Distribution alignment: guessed labels are reweighted until their class frequencies are those of the labels.

Berthelot et al. 2019, "ReMixMatch", arXiv:1911.09785.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.world import World

WINDOW = 128
"""Steps that the running average of predictions looks back (the paper's 128 batches)."""


def class_shares(label: Tensor, classes: int) -> Tensor:
    """float [K]: how often each class occurs among labels int64 [N]; -1 does not count."""
    counts = torch.bincount(label[label >= 0], minlength=classes).float()
    return counts / counts.sum().clamp_min(1)


class Alignment(nn.Module):
    """Keeps the model's mean prediction over the last steps, and aligns guesses to the labels' class shares.

    The memory starts uniform, as the authors' does. From the first steps alone the mean would be that of a model which says
    one class for nearly everything, and the division would turn its noise into confident labels of all the others.
    """

    history: Tensor
    prior: Tensor

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", prior)  # K
        self.register_buffer("history", torch.full((WINDOW, len(prior)), 1 / len(prior)))  # window K

    @torch.no_grad()
    def forward(self, q: Tensor, number: int, world: World) -> Tensor:
        """Guesses q [B, K], aligned: normalize(q * prior / running mean). This step's own q joins the mean afterwards.

        Args:
            q: [B, K], probabilities.
            number: steps done before this one.
            world: the workers; the mean is the global batch's.
        """
        mean = self.history.mean(0)  # K
        self.history[number % WINDOW] = world.mean(q.mean(0))
        aligned = q * self.prior / mean.clamp_min(1e-6)
        return aligned / aligned.sum(1, keepdim=True).clamp_min(1e-12)
