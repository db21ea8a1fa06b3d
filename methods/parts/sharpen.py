"""Sharpening of guessed labels (Berthelot et al. 2019, "MixMatch", arXiv:1905.02249, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Sharpen(p, T)_i = p_i^(1/T) / sum_j p_j^(1/T).

    Computed from logarithms, so that small temperatures neither overflow nor divide zero by zero.

    Args:
        p: probabilities, float [..., K].
        temperature: T > 0; 1 leaves p as it is, towards 0 it becomes one-hot.
    Returns:
        float32 (float64 for float64) [..., K], rows summing to 1.
    """
    assert temperature > 0, temperature
    p = p if p.dtype == torch.float64 else p.float()
    return (p.clamp_min(torch.finfo(p.dtype).tiny).log() / temperature).softmax(-1)
