"""Labelling the whole pool with a model, for methods that label between stages."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from methods.data.records import Images
from methods.world import World


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
        model: images to logits [B, K], or to several groups of them [B, G, K]; put into evaluation mode for the while.
        images: N images.
        world: the workers; all of them get the whole result.
        batch: images per forward pass.
    """
    n = len(images)
    each = -(-n // world.size)
    mine = torch.arange(world.rank * each, (world.rank + 1) * each).clamp_max(n - 1)
    training = model.training
    model.eval()
    parts = [model(images.take(index).to(world.device)).float().softmax(-1) for index in mine.split(batch)]
    model.train(training)
    return world.gather(torch.cat(parts))[:n]
