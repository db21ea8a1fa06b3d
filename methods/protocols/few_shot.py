"""Few-shot episodes on classes that training has not seen: N ways, K shots, the same episodes for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Episodes, EpisodeShape, RandomStream, seed_of
from methods.contracts import EpisodicLearner, MetricLearner
from methods.data.episodic import EpisodeSampler
from methods.data.records import LabelledSubset
from methods.parts.modes import device_of, evaluating
from methods.protocols.contract import Protocol, Score, Trained, embed, mean_interval
from methods.protocols.predict import unseen
from methods.protocols.probes import at_least

_DRAWN = 50
"""Episodes drawn at a time. Fixed, since an episode is a function of its number among these."""

_ADAPTED = 10
"""Episodes that a learner adapts to at a time: its graphs are held in memory together."""


@dataclass(frozen=True)
class FewShot(Protocol):
    """Mean accuracy over episodes with its 95% interval.

    A metric learner compares embeddings computed once per image; any other episodic learner adapts to each support set;
    every other encoder is scored by the nearest class centroid. ``fit`` is not used.

    Attributes:
        ways, shots, queries: classes of an episode, support and query images per class.
        episodes: how many; the interval is over them.
        within_group: take an episode's classes from one group (alphabet).
        distance: of the nearest centroid, ``cosine`` or ``euclidean``.
        episode_seed: of the episodes, and not of the training, so that every method answers the same.
    """

    name: ClassVar[str] = "few_shot"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    episodes: int = 600
    within_group: bool = False
    distance: Literal["cosine", "euclidean"] = "cosine"
    episode_seed: int = 0

    def __post_init__(self) -> None:
        at_least(self.name, "ways", self.ways, 2)
        for setting in ("shots", "queries"):
            at_least(self.name, setting, getattr(self, setting), 1)
        at_least(self.name, "episodes", self.episodes, 2)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        asked = unseen(self.name, trained, fit, ask)
        learner = trained.learner
        if isinstance(learner, EpisodicLearner) and not isinstance(learner, MetricLearner):
            rates = self._adapt(learner, asked)
        else:
            rates = self._compare(trained, learner if isinstance(learner, MetricLearner) else None, asked)
        each = torch.cat(list(rates)).double().cpu().numpy()
        mean, low, high = mean_interval(each)
        kind = "within groups" if self.within_group else "across groups"
        metric = f"accuracy, {self.ways}-way {self.shots}-shot {kind}"
        numbers = np.arange(self.episodes)
        low, high = max(low, 0.0), min(high, 1.0)
        seconds = time.perf_counter() - started
        return Score(self.name, metric, mean, self.episodes, numbers, None, low, high, seconds, each=each)

    def _draw(self, asked: LabelledSubset, most: int) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """Draw number, rows of the draw, support int64 [t, N*K] and query [t, N*Q] rows of ``asked``."""
        shape = EpisodeShape(_DRAWN, self.ways, self.shots, self.queries, self.within_group)
        sampler = EpisodeSampler(asked.label, asked.groups(), shape, seed_of("few_shot", self.episode_seed))
        for number in range(math.ceil(self.episodes / _DRAWN)):
            left = min(_DRAWN, self.episodes - number * _DRAWN)
            for start in range(0, left, most):
                rows = slice(start, min(start + most, left))
                support, query = sampler.indices(number, rows)
                yield number, rows, support, query

    def _rate(self, logits: Tensor) -> Tensor:
        """float [t]: share of right answers in each task of logits [t, N*Q, N], whose rows are ordered class by class."""
        truth = torch.arange(self.ways, device=logits.device).repeat_interleave(self.queries)
        return (logits.argmax(2) == truth).float().mean(1)

    def _compare(self, trained: Trained, learner: MetricLearner | None, asked: LabelledSubset) -> Iterator[Tensor]:
        z = embed(trained.encoder, asked.data.images, asked.index)
        classes = torch.arange(self.ways, device=z.device).repeat_interleave(self.shots)
        with torch.no_grad(), evaluating(*([] if learner is None else [learner])):
            for _, _, support, query in self._draw(asked, _DRAWN):
                s, q = z[support.to(z.device)], z[query.to(z.device)]  # [t, N*K, D], [t, N*Q, D]
                if learner is None:
                    yield self._rate(self.centroid_logits(s, q))
                else:
                    yield self._rate(learner.compare(s, classes.expand(len(s), -1), q, self.ways))

    def centroid_logits(self, support: Tensor, query: Tensor) -> Tensor:
        """float [t, Q, N]: closeness of each query to each class's mean embedding."""
        if self.distance == "cosine":
            support, query = F.normalize(support, dim=2), F.normalize(query, dim=2)
        centroid = support.unflatten(1, (self.ways, self.shots)).mean(2)  # [t, N, D]
        if self.distance == "cosine":
            return query @ F.normalize(centroid, dim=2).transpose(1, 2)
        return -torch.cdist(query, centroid, compute_mode="donot_use_mm_for_euclid_dist")

    def _adapt(self, learner: EpisodicLearner, asked: LabelledSubset) -> Iterator[Tensor]:
        device, ways = device_of(learner), self.ways
        positions = torch.from_numpy(asked.index)
        with evaluating(learner):
            for number, rows, support, query in self._draw(asked, _ADAPTED):
                t, n = support.shape
                at = positions[torch.cat([support, query], 1)]
                images = asked.data.images.take(at.flatten()).to(device).unflatten(0, (t, -1))
                classes = torch.arange(ways, device=device)
                episodes = Episodes(
                    support=images[:, :n],
                    support_label=classes.repeat_interleave(self.shots).expand(t, -1).contiguous(),
                    query=images[:, n:],
                    query_label=classes.repeat_interleave(self.queries).expand(t, -1).contiguous(),
                    shape=EpisodeShape(t, ways, self.shots, self.queries, self.within_group),
                    stream=RandomStream(seed_of("few_shot", self.episode_seed, number), _DRAWN, rows, device),
                )
                yield self._rate(learner.query_logits(episodes).detach())
