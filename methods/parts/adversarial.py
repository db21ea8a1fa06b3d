"""Virtual adversarial perturbations: the small change of an image that changes its prediction most.

Miyato et al. 2017, "Virtual adversarial training", arXiv:1704.03976.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from methods.batch import RandomStream
from methods.parts.losses import kl
from methods.parts.modes import still_statistics


def perturbation_unit(shape: tuple[int, int, int], std: tuple[float, ...]) -> Tensor:
    """float32 [C, 1, 1]: what one unit of perturbation is in each channel of an image of ``shape`` (C, H, W).

    A standard deviation for a 3 x 32 x 32 image; for others it grows with the square root of their size, as distances do.
    """
    return math.sqrt(math.prod(shape) / 3072) * torch.tensor(std).view(-1, 1, 1)


def unit(d: Tensor) -> Tensor:
    """Each row of [B, ...] divided by its length; rows of zeros stay zero."""
    length = d.flatten(1).norm(dim=1).clamp_min(1e-12)
    return d / length.view(-1, *([1] * (d.dim() - 1)))


def adversarial_direction(
    model: nn.Module,
    images: Tensor,
    logits: Tensor,
    scale: Tensor,
    xi: float,
    iterations: int,
    stream: tuple[RandomStream, ...],
) -> Tensor:
    """Unit directions [B, C, H, W] in which predictions change fastest, by power iteration from random ones.

    Args:
        model: images to logits, in the mode in which ``logits`` were computed.
        images: float [B, C, H, W] in [0, 1], the rows of one or several batches.
        logits: [B, K], the model's for ``images`` as they are.
        scale: [C, 1, 1], what one unit of perturbation is in each channel.
        xi: length of the finite difference.
        iterations: power iterations; 0 leaves the random directions.
        stream: one stream for each of those batches, in order.
    """
    d = unit(torch.cat([each.normal(*images.shape[1:]) for each in stream]))  # B C H W
    for _ in range(iterations):
        d = d.detach().requires_grad_()
        # The sum, not the mean: each row's gradient is its own, and with synchronised BatchNorm the workers' sums add up.
        (grad,) = torch.autograd.grad(kl(logits.detach(), model(images + xi * scale * d)).sum(), d)
        d = unit(grad)
    return d.detach()


def clean_and_worst(
    model: nn.Module, images: Tensor, scale: Tensor, eps: float, xi: float, iterations: int, stream: tuple[RandomStream, ...]
) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of images as they are, and at the perturbation of length ``eps`` that changes them most; with gradient.

    All passes run in float32, in which alone a small difference of predictions has a meaning. BatchNorm normalises by the
    batch in each of them, and its running statistics follow the clean one only. Arguments as in ``adversarial_direction``.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits: Tensor = model(images)  # B K
        with still_statistics(model):
            d = adversarial_direction(model, images, logits, scale, xi, iterations, stream)  # B C H W
            worst: Tensor = model(images + eps * scale * d)  # B K
    return logits, worst
