"""Embeddings kept from earlier steps: MoCo's queue of keys and the memory bank with one place per image.

He et al. 2019, arXiv:1911.05722 (queue); Wu et al. 2018, arXiv:1805.01978 (bank). D embedding, K queue length, N images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.domains import UserError


def _unit_rows(n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=generator), dim=1)


class Queue(nn.Module):
    """The last K keys, oldest replaced first. Starts with random unit vectors, from torch's global generator by default.

    Attributes:
        keys: float [K, D].
        pointer: int64 [], where the next key goes.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"a queue must hold at least 1 key, got {size}; raise the queue's size")
        self.register_buffer("keys", _unit_rows(size, dim, generator))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest keys by ``keys`` [B, D]: those of the *global* batch, so that all workers keep the same queue.

        Raises:
            UserError: more keys than the queue holds.
        """
        size, b = len(self.keys), len(keys)
        if b > size:
            raise UserError(
                f"a queue must be at least as long as the batch, got {size} keys for {b} images; raise the queue's size"
            )
        places = (self.pointer + torch.arange(b, device=self.keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.add_(b).remainder_(size)


class MemoryBank(nn.Module):
    """One unit vector per image of the study: random, from torch's global generator by default, until the image is met.

    Attributes:
        bank: float [N, D].
        met: bool [N], whether a step has seen the image.
    """

    bank: Tensor
    met: Tensor

    def __init__(self, n: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("bank", _unit_rows(n, dim, generator))
        self.register_buffer("met", torch.zeros(n, dtype=torch.bool))

    def read(self, index: Tensor) -> Tensor:
        """float [*index.shape, D]: the entries of images ``index``, int64 of any shape. No gradient."""
        return self.bank[index]

    @torch.no_grad()
    def initialise(self, index: Tensor, z: Tensor) -> None:
        """Entries of images that no step has seen become ``z``; the arguments are those of ``update``."""
        rows = torch.where(self.met[index, None], self.bank[index], F.normalize(z.to(self.bank.dtype), dim=1))
        self.bank.index_copy_(0, index, rows)
        self.met[index] = True

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor, momentum: float) -> None:
        """Moves entries towards ``z``: v <- unit(m v + (1 - m) unit(z)).

        Args:
            index: int64 [B], images of the *global* batch, so that all workers keep the same bank.
            z: float [B, D].
            momentum: m in [0, 1]; 0 replaces.
        """
        moved = momentum * self.bank[index] + (1 - momentum) * F.normalize(z.to(self.bank.dtype), dim=1)
        self.bank.index_copy_(0, index, F.normalize(moved, dim=1))
