"""Batch normalisation for learners that adapt to a task: statistics belong to one task, never to the global batch.

MAML's inner loop normalises every forward pass by the statistics of the images in it (transductive, as in Finn et al. 2017),
so ``methods.world.synchronise_batchnorm`` must leave these layers alone: ``TaskBatchNorm`` is no subclass of torch's.

The encoder is also scored and exported as it stands before adaptation. For that the layers keep running statistics of the
whole meta-batch: ``collecting`` gathers the moments of each task's pass through the unadapted network, and
``update_running`` averages them over tasks and workers. So neither the order of the tasks nor the number of workers matters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from methods.world import World


class TaskBatchNorm(nn.Module):
    """A BatchNorm whose ``per_task`` passes use their own batch's statistics and write none; same state-dict keys as torch's.

    Where ``per_task`` is False it normalises by the running statistics, in training too.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    eps: float
    momentum: float | None
    per_task: bool
    moments: list[Tensor] | None

    def forward(self, x: Tensor) -> Tensor:
        if not self.per_task:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if self.moments is not None:
            dims = [0, *range(2, x.dim())]
            with torch.no_grad():
                y = x.detach().float()
                self.moments.append(torch.stack([y.mean(dims), y.square().mean(dims)]))
        return batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def use_task_batchnorm(module: nn.Module) -> None:
    """Turns every BatchNorm inside ``module`` into a TaskBatchNorm, in place; the layers keep their identity and tensors."""
    for layer in list(module.modules()):
        if isinstance(layer, _BatchNorm):
            assert layer.track_running_stats, "the encoders' layers keep running statistics"
            layer.__class__ = TaskBatchNorm  # type: ignore[assignment]
            layer.per_task = False  # type: ignore[assignment]
            layer.moments = None  # type: ignore[assignment]


def task_layers(module: nn.Module) -> list[TaskBatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, TaskBatchNorm)]


def per_task(module: nn.Module, moments: bool = False) -> None:
    """Switches the layers of a task's clone to statistics of their own; with ``moments`` they remember them."""
    for layer in task_layers(module):
        layer.per_task = True
        layer.moments = [] if moments else None


def collected(module: nn.Module) -> list[Tensor]:
    """The moments [2, c] of each layer since ``per_task(module, moments=True)``, and no remembering from here on."""
    found = []
    for layer in task_layers(module):
        assert layer.moments is not None
        found.append(torch.stack(layer.moments).mean(dim=0))
        layer.moments = None
    return found


def update_running(module: nn.Module, tasks: Iterable[list[Tensor]], world: World) -> None:
    """Moves the running statistics towards the moments of the whole meta-batch: all tasks of all workers weigh the same."""
    layers = task_layers(module)
    if not layers:
        return
    with torch.no_grad():
        for layer, moments in zip(layers, zip(*tasks, strict=True), strict=True):
            mean, square = world.mean(torch.stack(moments).mean(dim=0)).to(layer.running_mean.dtype)
            rate = 0.1 if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean, rate)
            layer.running_var.lerp_((square - mean.square()).clamp_min(0), rate)
            layer.num_batches_tracked.add_(1)
