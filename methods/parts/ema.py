"""Teachers: a slow copy of a student, an exponential moving average of its weights (Tarvainen 2017, arXiv:1703.01780)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """A copy of ``student`` that follows it: w <- m w + (1 - m) w_student. Its forward passes carry no gradient.

    BatchNorm: a teacher that is called in training mode (MoCo, BYOL, DINO, mean teacher) normalises by its own batches'
    statistics, and its running statistics are its own from then on. A teacher that is only ever called in evaluation mode
    (the exported average of FixMatch) has no batches of its own: its running statistics are averaged like the weights.
    Counters are copied.

    Attributes:
        module: the averaged copy.
        student: what it is a copy of, and follows.
    """

    own_statistics: Tensor
    student: nn.Module

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False)
        # Past nn.Module's own bookkeeping: the student's weights are not the teacher's.
        object.__setattr__(self, "student", student)
        self.register_buffer("own_statistics", torch.zeros(()))

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """The copy's output."""
        if self.module.training:
            self.own_statistics.fill_(1)
        return self.module(*inputs)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Scalar: how far the average lies from the student, |w - w_student| / |w_student| over all parameters.

        0 says that the teacher teaches nothing of its own (momentum 0, or a student that stands still).
        """
        pairs = list(zip(self.module.parameters(), self.student.parameters(), strict=True))
        apart = torch.stack([(mine - theirs).float().norm() for mine, theirs in pairs]).norm()
        return apart / torch.stack([theirs.float().norm() for _, theirs in pairs]).norm()

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """One step of the average.

        Args:
            student: the module this was copied from.
            momentum: m in [0, 1]; 0 copies the student.
        """
        assert 0 <= momentum <= 1, momentum
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
        share = (1 - momentum) * (1 - self.own_statistics)
        for own, other in zip(self.module.buffers(), student.buffers(), strict=True):
            if own.is_floating_point():
                own.lerp_(other, share.to(own.dtype))
            else:
                own.copy_(other)
