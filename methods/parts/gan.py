"""Playing two networks against each other under one optimizer: both losses in one step, each with the other network frozen.

Goodfellow et al. 2014, "Generative adversarial nets", arXiv:1406.2661; hinge losses as in Miyato et al. 2018, arXiv:1802.05957.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def frozen(module: nn.Module, *inputs: Any) -> Any:
    """The module's output: gradients reach the inputs and not the module's parameters."""
    return functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, inputs)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of max(0, 1 - D(real)) plus mean of max(0, 1 + D(fake)); scores of any shape."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Minus the mean of D(fake)."""
    return -fake.float().mean()
