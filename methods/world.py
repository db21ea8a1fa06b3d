"""The workers that train one model together: rank, size, device, and differentiable collectives over torch.distributed.

A world of one needs no process group and costs nothing. torch's SyncBatchNorm refuses CPU tensors, so synchronised batch
statistics are built here on an all-reduce of our own; it works on gloo and nccl alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _AllReduceSum(torch.autograd.Function):
    """Sum over the workers; the gradient of a sum that every worker uses is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _AllGather(torch.autograd.Function):
    """Rows of all workers in rank order; each worker gets back the summed gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


@dataclass(frozen=True)
class World:
    """This worker's place among the workers of one trial.

    Attributes:
        rank: 0 .. size - 1.
        size: number of workers; above 1 torch.distributed's default group must be up.
        device: where this worker computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, x: Tensor) -> Tensor:
        """Differentiable sum of ``x`` over the workers, same shape."""
        return x if self.size == 1 else _AllReduceSum.apply(x)

    def mean(self, x: Tensor) -> Tensor:
        """Differentiable mean of ``x`` over the workers, same shape."""
        return x if self.size == 1 else self.sum(x) / self.size

    def gather(self, x: Tensor) -> Tensor:
        """Differentiable: rows [b, ...] of every worker as [size * b, ...], in rank order, the order of the global batch."""
        return x if self.size == 1 else _AllGather.apply(x)

    def rows(self, total: int) -> slice:
        """This worker's rows of a global batch of ``total`` rows. ``total`` is a multiple of ``size`` (Training checks)."""
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the workers; a parameter that got none counts as zero.

        A parameter that takes none at present, on any worker, is passed over.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the global batch: moments are summed over the workers by a differentiable all-reduce.

    Same parameters, buffers and state-dict keys as the torch layer it replaces.
    """

    world: World

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation needs at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.dim())]
        count = x.numel() // x.shape[1] * self.world.size
        total = self.world.sum(torch.stack([x.sum(dims), (x * x).sum(dims)]))
        mean = total[0] / count
        var = (total[1] / count - mean * mean).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                rate = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean.detach(), rate)
                self.running_var.lerp_(var.detach() * count / max(count - 1, 1), rate)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        shape = [1, -1, *([1] * (x.dim() - 2))]
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)


def synchronise_batchnorm(module: nn.Module, world: World) -> None:
    """Gives every BatchNorm inside ``module`` the global batch's statistics, in place. Does nothing in a world of one.

    The layers keep their identity (only their class changes), so optimizers and EMA copies stay valid.
    """
    if world.size == 1:
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = GlobalBatchNorm
            layer.world = world  # type: ignore[assignment]


def leave_world(module: nn.Module) -> None:
    """Gives every GlobalBatchNorm inside ``module`` its own batches' statistics, in place: for a copy trained by one worker."""
    for layer in module.modules():
        if isinstance(layer, GlobalBatchNorm):
            layer.world = World()
