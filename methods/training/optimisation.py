"""How a stage's parameters are optimised: the learner's optimizer, its learning-rate schedule, and averaged gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from methods.contracts import Learner, Optimizer, RateGroup
from methods.world import World


class Optimisation:
    """Optimizer and schedule of one stage.

    Attributes:
        spec: what the learner asked for.
        parameters: those that are trained.
        optimizer: torch's own, over all of them.
        factors: of the learning rate, one for each of its groups.
    """

    def __init__(self, learner: Learner) -> None:
        self.spec: Optimizer = learner.optimizer()
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        parts = learner.rate_groups() or (RateGroup(1.0, tuple(self.parameters)),)
        held = [id(p) for part in parts for p in part.parameters if p.requires_grad]
        assert sorted(held) == sorted(id(p) for p in self.parameters), "rate groups hold each trained parameter once"
        groups = []
        self.factors: list[float] = []
        for part in parts:
            trained = [p for p in part.parameters if p.requires_grad]
            decayed, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
            for parameters, weight_decay in ((decayed, self.spec.weight_decay), (plain, 0.0)):
                if parameters:
                    groups.append({"params": parameters, "weight_decay": weight_decay})
                    self.factors.append(part.factor)
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
        rate = self.rate(progress)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = factor * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
