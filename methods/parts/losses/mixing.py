"""Convex mixes of examples and their targets (Zhang et al. 2017, "mixup", arXiv:1710.09412)."""

from __future__ import annotations

from torch import Tensor


def mixup(x: Tensor, p: Tensor, partner_x: Tensor, partner_p: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """x' = lam x + (1 - lam) x_partner, and the same for the targets.

    Args:
        x, partner_x: float [B, ...], images or features.
        p, partner_p: float [B, K], target probabilities.
        lam: float [B] in [0, 1]; MixMatch takes max(lam, 1 - lam), so that x' stays nearer to x.
    Returns:
        the mixed x and p.
    """
    share = lam.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    weight = lam[:, None].to(p.dtype)
    return share * x + (1 - share) * partner_x, weight * p + (1 - weight) * partner_p
