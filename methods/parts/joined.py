"""Encoders side by side: an ensemble that is itself an encoder (Hansen & Salamon 1990, for classifiers).

With embeddings as they are, squared distances of the whole are sums of the members' squared distances; with unit embeddings,
cosines of the whole are means of the members' cosines. So comparing by either is voting with similarities.

B images, D embedding (of each member its own), M members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods.encoder import Encoder, Options
from methods.parts.encoder_base import Normalise


class JoinedEncoder(Encoder):
    """M encoders of any architecture; the embedding is [B, sum of D]."""

    name = "joined"

    def __init__(self, members: Sequence[Encoder], unit: bool) -> None:
        """
        Args:
            members: built by name, for images of the same shape.
            unit: whether every member's embedding is scaled to length 1.
        """
        super().__init__()
        self.members, self.unit = nn.ModuleList(members), unit
        self.dim = sum(m.dim for m in members)
        self.layers = tuple(f"{k}.{layer}" for k, m in enumerate(members) for layer in m.layers)
        if all(m.name for m in members):
            first = members[0]
            assert all(m.shape == first.shape for m in members)
            self.shape = first.shape
            mean, std = (first.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
            self.normalise = Normalise(tuple(mean), tuple(std))  # the members normalise; this encoder's file reads it
        else:
            self.name = ""  # with a class of the user's own among them, which no file can rebuild

    def _all(self) -> list[Encoder]:
        return [m for m in self.members if isinstance(m, Encoder)]

    def forward(self, images: Tensor) -> Tensor:
        return self.joined([member(images) for member in self._all()])

    def joined(self, each: Sequence[Tensor]) -> Tensor:
        """[B, sum of D], from the embeddings [B, D] of each member."""
        return torch.cat([normalize(z, dim=1) if self.unit else z for z in each], dim=1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        found = enumerate(member.maps(images) for member in self._all())
        return {f"{k}.{layer}": x for k, maps in found for layer, x in maps.items()}

    def options(self) -> Options:
        return {"unit": int(self.unit)}

    def composed_of(self) -> tuple[Encoder, ...]:
        return tuple(self._all())
