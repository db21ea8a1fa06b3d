"""What each step is fed: batches as a fixed function of (seed, step), whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from methods.batch import Batch, BatchSpec, Episodes, EpisodeShape, RandomStream, Step, seed_of
from methods.contracts import TrainingError
from methods.data.episodic import EpisodeSampler
from methods.data.records import IntArray, TrainData
from methods.world import World


class Stream:
    """An endless shuffled pass over ``members``: position p of the stream is a fixed function of (seed, p)."""

    def __init__(self, members: IntArray, seed: int) -> None:
        self.members, self.seed = members, seed
        self._pass, self._order = -1, members

    def _pass_order(self, number: int) -> IntArray:
        if number != self._pass:
            rng = np.random.default_rng(seed_of(self.seed, number))
            self._pass, self._order = number, rng.permutation(self.members)
        return self._order

    def rows(self, start: int, stop: int) -> IntArray:
        """int64 [stop - start]: the members at these positions of the stream."""
        n = len(self.members)
        parts = []
        while start < stop:
            number, offset = divmod(start, n)
            take = min(stop - start, n - offset)
            parts.append(self._pass_order(number)[offset : offset + take])
            start += take
        return np.concatenate(parts)


class Feeder:
    """Draws the batches of one stage.

    Raises:
        TrainingError: a batch does not divide by the workers, or there is nothing that could fill it.
    """

    def __init__(self, data: TrainData, batch_spec: BatchSpec, seed: int, world: World) -> None:
        self.data, self.batch_spec, self.seed, self.world = data, batch_spec, seed, world
        labelled = np.flatnonzero(data.label >= 0)
        needed = {
            "pool": batch_spec.pool,
            "labelled": batch_spec.labelled,
            "tasks": batch_spec.episodes.tasks if batch_spec.episodes else 0,
        }
        for name, size in needed.items():
            if size % world.size:
                raise TrainingError(f"the {name} batch must divide by the number of workers, got {size} over {world.size}")
        if batch_spec.labelled and not len(labelled):
            raise TrainingError("this method learns from labels, and the training part of the label budget is empty")
        if batch_spec.images == 0:
            raise TrainingError("a learner must ask for at least one image a step; its feeds are empty")
        self._pool = Stream(np.arange(len(data)), seed_of(seed, "pool"))
        self._labelled = Stream(labelled, seed_of(seed, "labelled"))
        self._sampler = self._episode_sampler(labelled) if batch_spec.episodes else None
        self._label = torch.from_numpy(data.label)
        self._group = None if data.group is None else torch.from_numpy(data.group)
        self._tokens = None if data.tokens is None else torch.from_numpy(data.tokens)
        targets = data.target_labels()
        self._targets = None if targets is None else torch.from_numpy(targets)

    def _episode_sampler(self, labelled: IntArray) -> EpisodeSampler:
        assert self.batch_spec.episodes is not None
        group = None if self.data.group is None else self.data.group[labelled]
        self._episode_members = torch.from_numpy(labelled)
        return EpisodeSampler(self.data.label[labelled], group, self.batch_spec.episodes, seed_of(self.seed, "episodes"))

    def _to_device(self, x: Tensor) -> Tensor:
        device = self.world.device
        if device.type == "cuda":
            return x.pin_memory().to(device, non_blocking=True)
        return x.to(device)

    def _batch(self, stream: Stream, size: int, name: str, number: int, labels: bool) -> Batch:
        rows = self.world.rows(size)
        index = torch.from_numpy(stream.rows(number * size + rows.start, number * size + rows.stop))
        return Batch(
            index=self._to_device(index),
            images=self._to_device(self.data.images.take(index)),
            stream=RandomStream(seed_of(self.seed, name, number), size, rows, self.world.device),
            label=self._to_device(self._label[index]) if labels else None,
            group=None if self._group is None else self._to_device(self._group[index]),
            tokens=None if self._tokens is None else self._to_device(self._tokens[index]),
            targets=self._to_device(self._targets[index]) if labels and self._targets is not None else None,
        )

    def _episodes(self, shape: EpisodeShape, number: int) -> Episodes:
        assert self._sampler is not None
        rows = self.world.rows(shape.tasks)
        support, query = self._sampler.indices(number, rows)
        stream = RandomStream(seed_of(self.seed, "episodes", number), shape.tasks, rows, self.world.device)
        return gather_episodes(self.data, self._episode_members, support, query, shape, stream, self._to_device)

    def step(self, number: int, progress: float) -> Step:
        """What this worker's step ``number`` of the stage is handed."""
        batch_spec = self.batch_spec
        return Step(
            number=number,
            progress=progress,
            world=self.world,
            pool=self._batch(self._pool, batch_spec.pool, "pool", number, labels=False) if batch_spec.pool else None,
            labelled=self._batch(self._labelled, batch_spec.labelled, "labelled", number, labels=True)
            if batch_spec.labelled
            else None,
            episodes=self._episodes(batch_spec.episodes, number) if batch_spec.episodes else None,
        )


def gather_episodes(
    data: TrainData,
    members: Tensor,
    support: Tensor,
    query: Tensor,
    shape: EpisodeShape,
    stream: RandomStream,
    to_device: Callable[[Tensor], Tensor],
) -> Episodes:
    """Episodes from positions in ``members``: support int64 [t, N*K], query [t, N*Q]; all images in one indexing step."""
    tasks = support.shape[0]
    both = members[torch.cat([support, query], dim=1)]
    images = to_device(data.images.take(both.flatten())).unflatten(0, (tasks, -1))
    classes = torch.arange(shape.ways)
    n = support.shape[1]
    return Episodes(
        support=images[:, :n],
        support_label=to_device(classes.repeat_interleave(shape.shots).expand(tasks, -1).contiguous()),
        query=images[:, n:],
        query_label=to_device(classes.repeat_interleave(shape.queries).expand(tasks, -1).contiguous()),
        shape=shape,
        stream=stream,
    )
