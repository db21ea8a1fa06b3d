"""A classifier whose encoder begins pretrained: which of its parts are trained and which stay as they are, and at what rates.

What stays is in evaluation mode and takes no gradient. Where that is the first blocks, autograd begins behind them, so they
store no activations and cost a forward pass alone.

B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from methods.contracts import RateGroup
from methods.encoder import Encoder

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Layers whose weights scale what they normalised."""


def blocks(encoder: Encoder) -> tuple[tuple[nn.Module, ...], ...]:
    """The encoder's blocks, first to last, each the modules that hold its parameters: one block where it cannot be cut."""
    return tuple(encoder.parts().values()) or ((encoder,),)


def scales_or_shifts(encoder: Encoder) -> list[nn.Parameter]:
    """Every bias, and the scales of normalisation layers."""
    return [
        parameter
        for module in encoder.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("bias") or isinstance(module, NORMS)
    ]


class TunedClassifier(nn.Module):
    """Images [B, C, H, W] to float32 logits [B, K].

    Attributes:
        encoder: the encoder.
        head: embeddings [B, D] to logits [B, K].
        frozen_norm: whether batch normalisation keeps its pretrained statistics, scales and shifts.
        held: how many of the encoder's first blocks stay as they are.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, frozen_norm: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen_norm, self.held = encoder, head, frozen_norm, 0
        self.hold(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)).float()

    def hold(self, count: int) -> None:
        """Lets the first ``count`` blocks stay as they are, and trains the others."""
        self.held = count
        for number, modules in enumerate(blocks(self.encoder)):
            for module in modules:
                module.requires_grad_(number >= count)
        self.train(self.training)
        for layer in self._still_norms():
            layer.requires_grad_(False)

    def train_only(self, chosen: list[nn.Parameter]) -> None:
        """Trains of the encoder's parameters those alone."""
        self.encoder.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> TunedClassifier:
        """Training mode, but for what stays as it is."""
        super().train(mode)
        for modules in blocks(self.encoder)[: self.held]:
            for module in modules:
                module.eval()
        for layer in self._still_norms():
            layer.eval()
        return self

    def rate_groups(self, layer_decay: float = 1.0, head: float = 1.0) -> tuple[RateGroup, ...]:
        """The head at ``head`` times the rate, the last block at 1, and every block before at ``layer_decay`` of the next."""
        each = blocks(self.encoder)
        parts = [
            RateGroup(layer_decay ** (len(each) - 1 - number), tuple(p for module in modules for p in module.parameters()))
            for number, modules in enumerate(each)
        ]
        return (*parts, RateGroup(head, tuple(self.head.parameters())))

    def _still_norms(self) -> Iterator[nn.Module]:
        """Batch normalisation that keeps its statistics: the encoder's where it is frozen, and in any case the head's frame."""
        for part in (self.encoder, self.head) if self.frozen_norm else (self.head,):
            yield from (layer for layer in part.modules() if isinstance(layer, _BatchNorm))
