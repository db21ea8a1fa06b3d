"""What a training step is handed: images, labels, episodes, and random numbers that do not depend on the number of workers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from methods.world import World


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a fixed function of ``parts``, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class RandomStream:
    """Random numbers for one batch, drawn for the *global* batch and sliced to this worker's rows.

    So N workers with 1/N of the batch see what one worker sees, and a resumed training sees what an uninterrupted one does.
    Successive calls give fresh numbers; ``fork`` gives an independent stream by name.
    """

    def __init__(self, seed: int, total: int, rows: slice, device: torch.device) -> None:
        self.seed, self.total, self.rows, self.device = seed, total, rows, device
        self._generator: torch.Generator | None = None
        self._numpy: np.random.Generator | None = None

    @property
    def generator(self) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(self.device).manual_seed(self.seed)
        return self._generator

    def fork(self, name: object) -> RandomStream:
        """An independent stream over the same rows, a fixed function of this stream's seed and ``name``."""
        return RandomStream(seed_of(self.seed, name), self.total, self.rows, self.device)

    def per(self, n: int) -> RandomStream:
        """The same stream with n rows for each of these: one row per image where these are one row per task of n images."""
        rows = slice(self.rows.start * n, self.rows.stop * n)
        return RandomStream(seed_of(self.seed, "per", n), self.total * n, rows, self.device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [b, *shape], uniform in [low, high)."""
        x = torch.rand(self.total, *shape, generator=self.generator, device=self.device)[self.rows]
        return x * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """float32 [b, *shape], standard normal."""
        return torch.randn(self.total, *shape, generator=self.generator, device=self.device)[self.rows]

    def integers(self, high: int, *shape: int) -> Tensor:
        """int64 [b, *shape], uniform in 0 .. high - 1."""
        return torch.randint(high, (self.total, *shape), generator=self.generator, device=self.device)[self.rows]

    def chance(self, p: float, *shape: int) -> Tensor:
        """bool [b, *shape], True with probability p."""
        return self.uniform(*shape) < p

    def permutations(self, n: int) -> Tensor:
        """int64 [b, n]: for each row an independent uniform permutation of 0 .. n - 1."""
        return self.uniform(n).argsort(dim=1)

    def permutation(self) -> Tensor:
        """int64 [total]: one permutation of the global batch, the same on every worker."""
        return torch.randperm(self.total, generator=self.generator, device=self.device)

    def beta(self, alpha: float, *shape: int) -> Tensor:
        """float32 [b, *shape], Beta(alpha, alpha). Drawn by numpy: torch's sampler takes no generator."""
        if self._numpy is None:
            self._numpy = np.random.default_rng(self.seed)
        x = self._numpy.beta(alpha, alpha, size=(self.total, *shape))
        return torch.from_numpy(np.asarray(x, dtype=np.float32)).to(self.device)[self.rows]


@dataclass(frozen=True)
class Batch:
    """This worker's part of a batch of images. b rows locally, ``stream.total`` in the global batch.

    Attributes:
        index: int64 [b], the images' stable positions in the study's training images (memory banks, temporal ensembling).
        images: uint8 [b, C, H, W], channels_last.
        stream: random numbers for these rows.
        label: int64 [b], -1 where unlabelled; None in a batch drawn without regard to labels.
        group: int64 [b], alphabet or domain, or None.
        tokens: int64 [b, L], captions as token ids, or None.
        targets: int64 [b, M], further label columns, -1 where unlabelled; None where there are none or labels are not regarded.
    """

    index: Tensor
    images: Tensor
    stream: RandomStream
    label: Tensor | None = None
    group: Tensor | None = None
    tokens: Tensor | None = None
    targets: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def labels(self) -> Tensor:
        """int64 [b]; only for batches from the labelled feed, which always carry labels."""
        assert self.label is not None, "the labelled feed carries labels"
        return self.label


@dataclass(frozen=True)
class EpisodeShape:
    """N-way K-shot: ``tasks`` episodes a step, each of ``ways`` classes with ``shots`` support and ``queries`` query images.

    ``within_group`` takes an episode's classes from one group; even so a share ``across`` of the episodes, drawn one by one,
    takes them from all groups.
    """

    tasks: int
    ways: int
    shots: int
    queries: int
    within_group: bool = False
    across: float = 0.0

    @property
    def images(self) -> int:
        return self.tasks * self.ways * (self.shots + self.queries)


@dataclass(frozen=True)
class Episodes:
    """This worker's t tasks of a meta-batch. Rows are ordered class by class.

    Attributes:
        support: uint8 [t, N*K, C, H, W].
        support_label: int64 [t, N*K], 0 .. N-1 inside the task.
        query: uint8 [t, N*Q, C, H, W].
        query_label: int64 [t, N*Q].
        shape: the episode's shape.
        stream: random numbers, one row per task (augmentation of support and query draws from children).
    """

    support: Tensor
    support_label: Tensor
    query: Tensor
    query_label: Tensor
    shape: EpisodeShape
    stream: RandomStream


@dataclass(frozen=True)
class BatchSpec:
    """What a learner wants in each step, as sizes of the *global* batch.

    Attributes:
        pool: images drawn from all training images, labels hidden.
        labelled: images drawn from the labelled ones (wrapping around where there are fewer), labels shown.
        episodes: few-shot episodes from the labelled classes.
    """

    pool: int = 0
    labelled: int = 0
    episodes: EpisodeShape | None = None

    @property
    def images(self) -> int:
        """Images drawn in a step: what an epoch counts."""
        return self.pool + self.labelled + (self.episodes.images if self.episodes else 0)


@dataclass(frozen=True)
class Step:
    """One training step's input.

    Attributes:
        pool, labelled, episodes: what the learner's ``batch_spec`` asked for, else None.
        number: steps already done in this stage.
        progress: share of this stage done, in [0, 1), measured against the study's top rung and never the current one.
        world: the workers.
    """

    number: int
    progress: float
    world: World
    pool: Batch | None = None
    labelled: Batch | None = None
    episodes: Episodes | None = None

    def from_pool(self) -> Batch:
        assert self.pool is not None, "the learner's feeds ask for the pool"
        return self.pool

    def from_labelled(self) -> Batch:
        assert self.labelled is not None, "the learner's feeds ask for labelled images"
        return self.labelled

    def from_episodes(self) -> Episodes:
        assert self.episodes is not None, "the learner's feeds ask for episodes"
        return self.episodes
