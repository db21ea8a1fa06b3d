"""Convolutions of each channel by itself, whose gradients a processor computes fast in bf16 too.

In bf16 the library that torch 2.14 uses on processors takes 30 to 490 times as long for two of these gradients as for the
convolution (one thread, the layers of EfficientNet-Lite0 at 96 pixels, 32 images): that of the input where there is a stride,
and that of a kernel of 5 x 5 or more. Both are written here as operations that are fast: a convolution of the spread gradient,
and a sum of products for each place of the kernel.

B batch, C channels, H W image, h w output, k kernel, s stride, p padding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Pair = tuple[int, int]

SMALL = 3
"""Side of the largest kernel whose gradient torch computes fast."""


class DepthwiseConv2d(nn.Conv2d):
    """As ``nn.Conv2d`` with as many groups as channels, one output each; parameters and results are the same."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._slow(x):
            return super().forward(x)
        low = torch.bfloat16
        stride, padding = (self.stride[0], self.stride[1]), (int(self.padding[0]), int(self.padding[1]))
        y: Tensor = _Depthwise.apply(x.to(low), self.weight.to(low), stride, padding)
        return y if self.bias is None else y + self.bias.to(low)[:, None, None]

    def _slow(self, x: Tensor) -> bool:
        """Whether torch's own gradients are slow here."""
        if x.device.type != "cpu" or not torch.is_grad_enabled() or not (max(self.stride) > 1 or max(self.kernel_size) > SMALL):
            return False
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return autocast or x.dtype == torch.bfloat16


class _Depthwise(torch.autograd.Function):
    """x [B, C, H, W], weight [C, 1, k, k] -> [B, C, h, w]. What it computes backwards can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        of_input, of_weight, *_ = ctx.needs_input_grad
        return (
            _of_input(gradient, x, weight, ctx.stride, ctx.padding) if of_input else None,
            _of_weight(gradient, x, weight, ctx.stride, ctx.padding) if of_weight else None,
            None,
            None,
        )


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """The turned kernel over the gradient, spread to where each output came from."""
    sizes = []
    for axis in (0, 1):
        kernel, side, out = weight.shape[2 + axis], x.shape[2 + axis], gradient.shape[2 + axis]
        over = (side + 2 * padding[axis] - kernel) % stride[axis]  # rows that no output reached
        sizes.append((out - 1) * stride[axis] + 1 + over)
    spread = gradient
    if stride != (1, 1) or sizes != list(gradient.shape[2:]):
        spread = gradient.new_zeros((*gradient.shape[:2], *sizes)).contiguous(memory_format=torch.channels_last)
        spread[:, :, :: stride[0], :: stride[1]] = gradient
    around = weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1]
    return F.conv2d(spread, weight.flip(2, 3), None, 1, around, 1, len(weight))


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """For each place of a large kernel the products of what it saw and the gradient, added up."""
    (high, wide), (h, w) = weight.shape[2:], gradient.shape[2:]
    if max(high, wide) <= SMALL:
        return conv2d_weight(x, list(weight.shape), gradient, stride, padding, 1, len(weight))
    seen = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    places = []
    for top in range(high):
        for left in range(wide):
            part = seen[
                :, :, top : top + stride[0] * (h - 1) + 1 : stride[0], left : left + stride[1] * (w - 1) + 1 : stride[1]
            ]
            places.append((part * gradient).sum((0, 2, 3)))
    return torch.stack(places, dim=1).reshape(weight.shape)


def quick_depthwise(net: nn.Module) -> None:
    """Puts ``DepthwiseConv2d`` in the place of every plain convolution of each channel by itself, with the same parameters."""
    for module in net.modules():
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and _depthwise(child):
                kernel, stride, padding = (cast(Pair, of) for of in (child.kernel_size, child.stride, child.padding))
                made = DepthwiseConv2d(
                    child.in_channels,
                    child.out_channels,
                    kernel,
                    stride,
                    padding,
                    groups=child.groups,
                    bias=child.bias is not None,
                    device="meta",
                )
                made.weight, made.bias = child.weight, child.bias
                made.train(child.training)
                setattr(module, name, made)


def _depthwise(conv: nn.Conv2d) -> bool:
    alone = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and set(conv.dilation) == {1}
    return alone and plain and all(int(p) < k for p, k in zip(cast(Pair, conv.padding), conv.kernel_size, strict=True))
