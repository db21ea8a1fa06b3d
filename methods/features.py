"""Frozen features: what a feature method is fitted on.

N images of the pool, V views (the image, and mirrored where that keeps its meaning), D embedding, K classes, n labelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from search_spaces.domains import UserError

T = TypeVar("T")

Seen = Literal["one", "averaged", "augmented"]

SAMPLE = 4096
"""Images that moments are taken of, at the most."""

CHUNK = 4096
"""Rows that are turned into float32 at a time where all are looked at."""


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of the whole pool by a frozen encoder, and the labels that a method may know.

    Attributes:
        values: float16 or float32 [N, V, D], on the CPU or the device, possibly memory-mapped: take rows rather than all.
        label: int64 [N] on the CPU, -1 where hidden.
        classes: K.
        seed: of everything random in the fit.
        device: where to compute, and where the head must live.
        seen: how the views are looked at: ``one`` (the image alone), ``averaged``, or ``augmented``, each an example.
        memo: what was computed of ``values`` alone, for this process's later fits on them (see ``remembered``).
    """

    values: Tensor
    label: Tensor
    classes: int
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seen: Seen = "one"
    memo: MutableMapping[Hashable, object] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.values.shape[2])

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def rows(self, index: Tensor) -> Tensor:
        """float32 [n, V, D] on the device, of the images at ``index`` as they are seen; V is 1 unless ``augmented``."""
        return self._seen(self.values[index.to(self.values.device)])

    def _seen(self, rows: Tensor) -> Tensor:
        x = rows.to(self.device, torch.float32)
        if self.seen == "averaged":
            return x.mean(1, keepdim=True)
        return x if self.seen == "augmented" else x[:, :1]

    def labelled(self) -> tuple[Tensor, Tensor]:
        """float32 [m, D] and int64 [m] on the device: the examples whose label may be known, an image's views in a row.

        Raises:
            UserError: there is no label, or of one class only.
        """
        index = torch.nonzero(self.label >= 0).flatten()
        x, label = self.rows(index), self.label[index].to(self.device)
        if len(label.unique()) < 2:
            raise UserError(f"a classifier needs labels of at least 2 classes, got {len(label)} labels; label another class")
        return x.flatten(0, 1), label.repeat_interleave(x.shape[1])

    def pool(self) -> Tensor:
        """float32 [N, D] on the device: every image as it will be asked, N labelled ones among them."""
        return torch.cat([self._seen(rows)[:, 0] for rows in self.values.split(CHUNK)])

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once in this process for these values. It must not depend on labels or the seed."""
        place = (self.seen, key)
        if place not in self.memo:
            self.memo[place] = make()
        return self.memo[place]  # type: ignore[return-value]

    def moments(self) -> tuple[Tensor, Tensor]:
        """float32 [D] each, on the device: mean and standard deviation over the pool as it is seen.

        Of at most ``SAMPLE`` evenly spaced images, so that a fit need not read the embeddings of all.
        """
        mean, std = self.remembered("moments", self._moments)
        return mean.to(self.device), std.to(self.device)

    def _moments(self) -> tuple[Tensor, Tensor]:
        index = torch.linspace(0, len(self) - 1, min(len(self), SAMPLE)).round().long()
        x = self.rows(index).flatten(0, 1)
        mean = x.double().mean(0)
        return mean.float(), (x.double() - mean).square().mean(0).sqrt().float()
