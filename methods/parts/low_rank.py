"""Low-rank updates of a network's weights: W = W0 + scale * B A.

Hu et al. 2021, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685. A convolution's kernel [out, in, h, w]
is a matrix [out, in * h * w], as in LoCon (Yeh et al. 2023, arXiv:2309.14859): A convolves to r channels, B is pointwise.

B, A factors; r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

DENSE = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Layers whose weights are matrices or kernels."""


class LowRank(nn.Module):
    """The factors of every weight of ``model``'s linear, convolution and attention layers, and the weights W0 they add to.

    B begins at zero, so that the network begins as it is. ``model`` is not kept: it is handed over where it is changed.

    Attributes:
        names: of the weights in ``model``.
        scale: alpha / r.
    """

    def __init__(self, model: nn.Module, rank: int, alpha: float) -> None:
        """
        Args:
            model: whose weights are updated.
            rank: r, of each update; of a smaller matrix its own.
            alpha: over r what updates are multiplied by.
        """
        super().__init__()
        self.scale = alpha / rank
        chosen = {
            f"{place}.{name}" if place else name: weight
            for place, module in model.named_modules()
            if isinstance(module, DENSE)
            for name, weight in module.named_parameters(recurse=False)
            if weight.dim() > 1
        }
        self.names = tuple(chosen)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for number, weight in enumerate(chosen.values()):
            out, inner = weight.shape[0], weight[0].numel()
            r = min(rank, out, inner)
            a = torch.empty(r, inner, device=weight.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            self.down.append(nn.Parameter(a))
            self.up.append(nn.Parameter(torch.zeros(out, r, device=weight.device)))
            self.register_buffer(f"base{number}", weight.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        """The updated weights by their names in the model, with gradient to the factors, in full precision."""
        found = {}
        for number, (name, a, b) in enumerate(zip(self.names, self.down, self.up, strict=True)):
            base = self.get_buffer(f"base{number}")
            with torch.autocast(base.device.type, enabled=False):
                found[name] = base + self.scale * (b @ a).view(base.shape)
        return found

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Writes the updated weights into the model, in place."""
        for name, weight in self.weights().items():
            model.get_parameter(name).copy_(weight)
