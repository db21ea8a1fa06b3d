"""What most self-supervised methods share: one feed from the pool, AdamW with a warm-up, two views of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec
from methods.contracts import Optimizer, SharedConfig
from methods.parts.augment import Augment, to_float
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class SelfConfig(SharedConfig):
    """The shared knobs, and what follows from them for a method that learns from the pool alone.

    Rate and batch are for small encoders and some hundred to some thousand steps.
    """

    lr: float = knob(
        4e-3, Float(5e-4, 1e-2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Loshchilov & Hutter 2019: 1e-3",
    )  # fmt: skip
    batch_size: int = knob(
        128,
        Int(64, 512, power_of_two=True),
        legal=Int(2, 65536),
        unit="images",
        doc="images per step",
        source="Chen 2020: 256 on",
    )

    def batch_spec(self) -> BatchSpec:
        """The pool's images, ``batch_size`` of them."""
        return BatchSpec(pool=self.batch_size)

    def adamw(self, warmup: float = 0.1, clip: float | None = None) -> Optimizer:
        """AdamW at the learning rate that the batch asks for, warmed up over a share of the training."""
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay, warmup=warmup, clip=clip)


def two_views(augment: Augment, batch: Batch) -> tuple[Tensor, Tensor]:
    """Two independent random views [B, C, H, W] of every image of the batch."""
    return augment(batch.images, batch.stream.fork("one")), augment(batch.images, batch.stream.fork("two"))


def beside(images: Tensor, *others: Tensor) -> Tensor:
    """Pictures [n, C, H, W'] in [0, 1]: each image with what was made of it to its right; uint8 or float images."""
    return torch.cat([to_float(images), *(x.float().clamp(0, 1) for x in others)], dim=3)


@contextmanager
def judged(learner: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, whatever it was before: pictures must not move batch statistics."""
    training = learner.training
    learner.eval()
    try:
        yield
    finally:
        learner.train(training)
