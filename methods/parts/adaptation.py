"""Adapting a network to a task by gradient steps: what MAML, Meta-SGD and Reptile share.

Shapes: T tasks, N ways, K shots, Q queries, C channels, H, W, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear

from methods.batch import Episodes
from methods.parts.encoders import Encoder
from methods.parts.tasknorm import collected, per_task, use_task_batchnorm

HEADS = ("zero", "learned")


class TaskHead(nn.Module):
    """A linear layer whose starting rows fit any number of ways; ``begin`` must precede ``forward``.

    ``zero`` starts at zero and has no parameters of its own. ``learned`` keeps ``ways`` meta-learned rows: fewer ways take the
    first rows, more ways take the mean row for the further ones.
    """

    weight: Tensor
    bias: Tensor
    zero: Tensor

    def __init__(self, dim: int, ways: int, kind: str) -> None:
        super().__init__()
        assert kind in HEADS, kind
        self.dim = dim
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # Knows the device and type of a head at zero.
        self.register_parameter("weight", nn.Parameter(torch.empty(ways, dim)) if kind == "learned" else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(ways)) if kind == "learned" else None)
        if kind == "learned":
            nn.init.normal_(self.weight, std=dim**-0.5)

    def start(self, ways: int) -> tuple[Tensor, Tensor]:
        """Starting weight [N, D] and bias [N]; gradients reach the learned rows."""
        if self._parameters["weight"] is None:
            return self.zero.new_zeros(ways, self.dim).requires_grad_(), self.zero.new_zeros(ways).requires_grad_()
        weight, bias = self.weight[:ways], self.bias[:ways]
        more = max(0, ways - len(self.weight))
        if more:
            weight = torch.cat([weight, self.weight.mean(dim=0).expand(more, -1)])
            bias = torch.cat([bias, self.bias.mean().expand(more)])
        return weight, bias

    def begin(self, ways: int) -> None:
        """Only on a task's clone: its rows become the starting rows for ``ways`` classes."""
        self._parameters["weight"], self._parameters["bias"] = self.start(ways)  # type: ignore[assignment]

    def forward(self, z: Tensor) -> Tensor:
        return linear(z, self.weight, self.bias)


class TaskNet(nn.Module):
    """Encoder and head. Every BatchNorm of the encoder becomes a ``TaskBatchNorm``: statistics belong to one task."""

    def __init__(self, encoder: Encoder, ways: int, head: str) -> None:
        super().__init__()
        use_task_batchnorm(encoder)
        self.body = encoder
        self.head = TaskHead(encoder.dim, ways, head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, N] of images [n, C, H, W]."""
        return self.head(self.body(images))


class FastLearner(Protocol):
    """What learn2learn's MAML and MetaSGD give back from ``clone``."""

    module: TaskNet

    def adapt(self, loss: Tensor) -> None: ...

    def __call__(self, images: Tensor) -> Tensor: ...


def adapt_tasks(
    clone: Callable[[], FastLearner], episodes: Episodes, steps: int, graph: bool = True
) -> tuple[Tensor, list[list[Tensor]]]:
    """Every task by itself: a fresh clone takes ``steps`` gradient steps on the support set and classifies the queries.

    Args:
        clone: gives a task's own copy of the network, connected to the original by the graph.
        graph: whether the logits shall have gradients; evaluation does without.
    Returns:
        logits float [t, N*Q, N], and each task's batch-normalisation moments in the unadapted network's pass.
    """
    logits, moments = [], []
    for support, label, query in zip(episodes.support, episodes.support_label, episodes.query, strict=True):
        fast = clone()
        per_task(fast.module, moments=True)
        fast.module.head.begin(episodes.shape.ways)
        for number in range(steps):
            loss = cross_entropy(fast(support), label)  # support [N*K, C, H, W]
            if number == 0:
                moments.append(collected(fast.module))
            fast.adapt(loss)
        with torch.set_grad_enabled(graph):
            logits.append(fast(query))  # [N*Q, N]
    return torch.stack(logits), moments


def evaluated(clone: Callable[[bool], FastLearner], episodes: Episodes, steps: int, graph: bool) -> Tensor:
    """Logits [t, N*Q, N] after adapting; ``clone(cheap)``. Without ``graph`` first order does, and logits have no gradient."""
    with differentiable(episodes.query.device):
        # Labels are saved for the backward pass, which tensors made in inference mode may not be.
        episodes = replace(episodes, support_label=episodes.support_label.clone())
        logits, _ = adapt_tasks(lambda: clone(not graph), episodes, steps, graph)
    return logits


@contextmanager
def differentiable(device: torch.device) -> Iterator[None]:
    """Gradients, in float32, with operations that have second derivatives: inner loops need them in evaluation too."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield
