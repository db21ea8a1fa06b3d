"""What the few-shot methods share: the knobs of a training episode, its fit to the data, and its augmentation.

Shapes: T tasks, N ways, K shots, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.batch import Batch, Episodes, EpisodeShape, RandomStream
from methods.contracts import Context, Loss, Optimizer, SharedConfig, TrainingError
from methods.parts.augment import Augment, rotate_quarter, to_float
from methods.parts.averaged import VIEWS, averaged
from methods.parts.compositions import compositions
from methods.parts.encoders import Encoder
from methods.parts.framed import FramedEncoder
from methods.parts.framing import paper_of
from search_spaces.domains import SWITCH, Choice, Float, Int, When, knob, knobs

RECIPES = Choice(("weak", "crop_flip", "simclr", "strong", "strokes"))


@dataclass(frozen=True)
class FewShotConfig(SharedConfig):
    """Knobs of every few-shot method."""

    augmentation: str = knob("weak", RECIPES, doc="augmentation recipe of training images", source="CATALOGUE")
    framed: bool = knob(
        False, None, legal=SWITCH, source="Casey 1970",
        doc="every drawing is moved to the middle and to one size, for drawings on white or black paper",
    )  # fmt: skip

    def new_encoder(self, context: Context) -> Encoder:
        """A fresh encoder; a framed one frames in evaluation mode, see ``augment``."""
        encoder = self._sight(context)
        return FramedEncoder(encoder, paper_of(context.data.mean)) if self.framed else encoder

    def _sight(self, context: Context) -> Encoder:
        return context.new_encoder()

    def augment(self, context: Context) -> Augment:
        """The recipe at its strength, of framed drawings where they are to be framed."""
        paper = paper_of(context.data.mean) if self.framed else None
        return context.augment(self.augmentation, self.augmentation_strength, paper=paper)


@dataclass(frozen=True)
class EpisodicConfig(FewShotConfig):
    """Knobs of every method trained on episodes. lr is used as it stands: a step counts tasks, not images."""

    lr: float = knob(
        3e-3, Float(3e-4, 2e-2, log=True), legal=Float(1e-8, 100), unit="per step", doc="learning rate of AdamW",
        source="Snell 2017: 1e-3",
    )  # fmt: skip
    batch_size: int = 0  # Not a knob here: the size of a step is tasks x ways x (shots + queries).
    ways: int = knob(
        20, Int(5, 60), legal=Int(2, 1000), unit="classes", source="Snell 2017",
        doc="classes of a training episode; at most as many as the data offers are taken",
    )  # fmt: skip
    shots: int = knob(
        1, Int(1, 5), legal=Int(1, 100), unit="images", doc="support images per class in training", source="Snell 2017"
    )
    queries: int = knob(
        5, Int(1, 15), legal=Int(1, 100), unit="images", source="Snell 2017",
        doc="query images per class in training; fewer where the data has fewer",
    )  # fmt: skip
    tasks: int = knob(
        2, Int(1, 8), legal=Int(1, 1024), unit="tasks", source="Finn 2017",
        doc="episodes per step, all workers together, among whom they are divided: the next multiple is taken",
    )  # fmt: skip
    rotations: bool = knob(
        False, SWITCH, doc="training classes turned by 90, 180 and 270 degrees are classes of their own", source="Santoro 2016"
    )
    turned: str = knob(
        "class", Choice(("class", "task")), when=When("rotations", True), source="Santoro 2016: class",
        doc="what takes a turn of its own: each class, or the task as a whole (an alphabet turned)",
    )  # fmt: skip
    mirrors: bool = knob(
        False, SWITCH, doc="mirror images of the turned classes are classes too", when=When("rotations", True),
        source="as Santoro 2016 turns",
    )  # fmt: skip
    composed: float = knob(
        0.0, None, legal=Float(0.0, 1.0), source="after Lake 2015: characters share parts",
        doc="share of a training episode's classes that are two classes drawn into one picture, for drawings on plain paper",
    )  # fmt: skip
    within_group: bool = knob(
        False, SWITCH, source="Lake 2019",
        doc="classes of a training episode come from one group (alphabet), where the data has groups",
    )  # fmt: skip
    across: float = knob(
        0.0, Float(0.0, 0.8), legal=Float(0.0, 1.0), doc="share of episodes whose classes still come from all groups",
        when=When("within_group", True), source="Lake 2019: all within or all across",
    )  # fmt: skip

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", lr=self.lr, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class MetricConfig(EpisodicConfig):
    """Knobs of the episodic methods that compare embeddings."""

    test_views: int = knob(
        1, Int(1, len(VIEWS)), unit="views", source="Krizhevsky 2012: 10 crops",
        doc="after training an embedding is the mean over the image and small affine views of it",
    )  # fmt: skip

    def _sight(self, context: Context) -> Encoder:
        return averaged(context.new_encoder(), self.test_views)


def restated(name: str, when: When) -> Any:
    """A knob of ``EpisodicConfig`` that in another ``Config`` exists only under a condition."""
    item = knobs(EpisodicConfig)[name]
    return knob(item.default, item.search, legal=item.legal, unit=item.unit, doc=item.doc, source=item.source, when=when)


def fit_shape(
    config: EpisodicConfig, counts: Sequence[int], groups: Sequence[Sequence[int]] | None = None, workers: int = 1
) -> EpisodeShape:
    """The training episode nearest to the configured one that the data can fill.

    Ways are clipped to the classes with at least two images, within groups to the classes of the median group, so that at
    least half of the groups take part; then queries, and after them shots, to the images that so many classes have.
    (Evaluation episodes are never clipped.)

    Args:
        counts: labelled images of each class.
        groups: labelled images of each class in each group, or None where the data has no groups.
        workers: among which a step's tasks are divided; as many are added as the division needs.
    Raises:
        TrainingError: fewer than two classes with at least two labelled images.
    """
    within = config.within_group and groups is not None
    members = [[n for n in of if n >= 2] for of in (groups if within and groups else [counts])]
    usable = sorted((n for of in members for n in of), reverse=True)
    most = sorted((len(of) for of in members), reverse=True)[len(members) // 2]
    if most < 2:
        kind = "training episodes within groups" if within else "training episodes"
        raise TrainingError(f"{kind} need at least 2 classes with 2 labelled images each, got {most}; give more labels")
    ways = min(config.ways, most)
    room = usable[-1] if within else usable[ways - 1]
    queries = min(config.queries, max(1, room - config.shots))
    shots = min(config.shots, room - queries)
    tasks = -(-config.tasks // workers) * workers
    return EpisodeShape(tasks, ways, shots, queries, within, config.across if within else 0.0)


def training_shape(config: EpisodicConfig, context: Context) -> EpisodeShape:
    """``fit_shape`` for the labels that the method may know."""
    data = context.data
    known = data.label >= 0
    counts = np.bincount(data.label[known], minlength=1)
    groups = None
    if data.group is not None:
        present = np.unique(data.group[known & (data.group >= 0)])
        groups = [np.bincount(data.label[known & (data.group == g)]).tolist() for g in present]
    return fit_shape(config, counts.tolist(), groups, context.world.size)


class EpisodeViews:
    """Augmented training episodes: every image by its own draws; a share ``composed`` of the classes made of two, and where
    ``rotations`` is on every class or task turned."""

    def __init__(self, config: EpisodicConfig, context: Context) -> None:
        self.augment = config.augment(context)
        self._config = config
        self._paper = paper_of(context.data.mean)

    def __call__(self, episodes: Episodes) -> Episodes:
        """The same episodes with images float [t, N*K or N*Q, C, H, W] in [0, 1]."""
        shape, stream = episodes.shape, episodes.stream
        support, query = episodes.support, episodes.query
        if self._config.composed:
            plan = compositions(shape.ways, self._config.composed, stream.fork("composed"))
            support = plan.drawn(support, episodes.support_label, shape.shots, self._paper)
            query = plan.drawn(query, episodes.query_label, shape.queries, self._paper)
        if self._config.rotations:
            turns = stream.fork("turns").integers(8 if self._config.mirrors else 4, shape.ways)  # [t, N]
            if self._config.turned == "task":
                turns = turns[:, :1].expand_as(turns)
            support = turn_classes(support, turns.gather(1, episodes.support_label))
            query = turn_classes(query, turns.gather(1, episodes.query_label))
        return self.augmented(replace(episodes, support=support, query=query))

    def augmented(self, episodes: Episodes) -> Episodes:
        """The same episodes augmented alone: nothing is composed or turned."""
        return replace(
            episodes,
            support=self._view(episodes.support, episodes.stream.fork("support")),
            query=self._view(episodes.query, episodes.stream.fork("query")),
        )

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Each image with an augmented view to its right."""
        return augmented_pictures(self.augment, batch)

    def _view(self, images: Tensor, stream: RandomStream) -> Tensor:
        tasks, n = images.shape[:2]
        return self.augment(images.flatten(0, 1), stream.per(n)).unflatten(0, (tasks, n))


def augmented_pictures(augment: Augment, batch: Batch) -> dict[str, Tensor]:
    """Each image with an augmented view to its right."""
    return {"original | augmented": torch.cat([to_float(batch.images), augment(batch.images, batch.stream)], dim=3)}


def turn_classes(images: Tensor, turns: Tensor) -> Tensor:
    """Images [t, n, C, H, W], each turned by its number of quarter turns, int64 [t, n]; from 4 on mirrored first."""
    flat = images.flatten(0, 1)
    flat = torch.where((turns >= 4).view(-1, 1, 1, 1), flat.flip(3), flat)
    return rotate_quarter(flat, turns.flatten() % 4).unflatten(0, turns.shape)


def embedded(encoder: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Support [t, N*K, D] and query [t, N*Q, D] embeddings, from one pass over all images."""
    tasks, n = episodes.support.shape[:2]
    z = encoder(torch.cat([episodes.support, episodes.query], dim=1).flatten(0, 1)).unflatten(0, (tasks, -1))
    return z[:, :n], z[:, n:]


def exchanged(support: Tensor, query: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    """The K + Q episodes in which the images of each class take turns as its support, from one pass over all of them.

    Args:
        support, query: embeddings [t, N*K, D] and [t, N*Q, D], class by class.
        ways: N.
    Returns:
        Support and query embeddings [t*(K+Q), N*K, D] and [t*(K+Q), N*Q, D], the turns of a task side by side; classes stay
        where they are.
    """
    z = torch.cat([x.unflatten(1, (ways, -1)) for x in (support, query)], dim=2)  # t N K+Q D
    turns = torch.stack([z.roll(-turn, dims=2) for turn in range(z.shape[2])], dim=1).flatten(0, 1)
    shots = support.shape[1] // ways
    return turns[:, :, :shots].flatten(1, 2), turns[:, :, shots:].flatten(1, 2)


def episode_loss(logits: Tensor, query_label: Tensor) -> Loss:
    """Cross-entropy of the queries, averaged over tasks and queries; logits [t, N*Q, N], labels int64 [t, N*Q]."""
    flat, label = logits.float().flatten(0, 1), query_label.flatten()
    accuracy = (flat.detach().argmax(dim=1) == label).float().mean()
    return Loss(cross_entropy(flat, label), {"accuracy": accuracy})
