"""What is changed for a while and put back afterwards: modules' modes, the process's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and full precision inside; every submodule's own mode is put back afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    device = device_of(*modules)
    for module in modules:
        module.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def statistics_moved(model: nn.Module, momentum: float) -> Iterator[None]:
    """BatchNorm inside uses the batch's statistics, and moves its running ones towards them by ``momentum``."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = momentum
    try:
        yield
    finally:
        for layer, before in zip(layers, momenta, strict=True):
            layer.momentum = before


def still_statistics(model: nn.Module) -> AbstractContextManager[None]:
    """BatchNorm inside leaves its running statistics alone: for passes on artificial images."""
    return statistics_moved(model, 0.0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with ``count`` threads inside; the process may be a user's own, whose number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(*modules: nn.Module) -> torch.device:
    """Where the modules live: the device of their first parameter or buffer, else the CPU."""
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")
