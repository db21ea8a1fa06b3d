"""The classifier that every method with labels trains: the study's encoder and one linear layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.batch import Draws
from methods.data.records import Images
from methods.parts.encoders import Encoder
from methods.world import World


class Classifier(nn.Module):
    """Images [B, C, H, W], uint8 or float in [0, 1], to float32 logits [B, K]."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images)).float()
        return logits

    def with_dropout(self, images: Tensor, rate: float, *draws: Draws) -> Tensor:
        """Logits with a share ``rate`` of the embedding's units dropped.

        Args:
            images: [B, C, H, W], the rows of one or several batches.
            rate: share of units dropped, in [0, 1).
            draws: one stream for each of those batches, in order.
        """
        embedding = self.encoder(images)  # B D
        keep = torch.cat([each.chance(1 - rate, embedding.shape[1]) for each in draws])  # B D
        logits: Tensor = self.head(embedding * keep / (1 - rate)).float()
        return logits


class Frozen(nn.Module):
    """A copy of a module as it is now: without gradient, and in evaluation mode for good."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.module(images)
        return out


@torch.no_grad()
def label_pool(model: nn.Module, images: Images, world: World, batch: int = 1024) -> Tensor:
    """float32 [N, K]: the model's class probabilities for every image as it is, divided over the workers.

    Args:
        model: images to logits [B, K]; put into evaluation mode for the while.
        images: N images.
        world: the workers; all of them get the whole result.
        batch: images per forward pass.
    """
    n = len(images)
    each = -(-n // world.size)
    mine = torch.arange(world.rank * each, (world.rank + 1) * each).clamp_max(n - 1)
    training = model.training
    model.eval()
    parts = [model(images.take(index).to(world.device)).float().softmax(1) for index in mine.split(batch)]
    model.train(training)
    return world.gather(torch.cat(parts))[:n]


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm inside uses the batch's statistics but leaves the running ones alone: for passes on artificial images."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
