"""How a stage's parameters are optimised: the learner's optimizer, its learning-rate schedule, and averaged gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from methods.contracts import Learner, Optimizer
from methods.world import World


class Optimisation:
    """Optimizer and schedule of one stage.

    Attributes:
        spec: what the learner asked for.
        parameters: those that are trained.
        optimizer: torch's own, over all of them.
    """

    def __init__(self, learner: Learner) -> None:
        self.spec: Optimizer = learner.optimizer()
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.spec.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.spec.kind == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=self.spec.lr, betas=self.spec.betas, fused=True
            )
        else:
            momentum = self.spec.momentum
            self.optimizer = torch.optim.SGD(groups, lr=self.spec.lr, momentum=momentum, nesterov=momentum > 0, fused=True)

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` of the stage."""
        spec = self.spec
        if progress < spec.warmup:
            return spec.lr * max(progress / spec.warmup, 0.01)
        if spec.schedule == "constant":
            return spec.lr
        return spec.lr * 0.5 * (1 + float(np.cos(np.pi * (progress - spec.warmup) / (1 - spec.warmup))))

    def step(self, progress: float, world: World) -> None:
        """Averages the gradients over the workers, moves the parameters and clears the gradients."""
        world.average_gradients(self.parameters)
        if self.spec.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
