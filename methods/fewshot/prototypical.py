"""Prototypical networks: classify by the nearest class mean in a learned embedding.

Snell, Swersky & Zemel 2017, https://arxiv.org/abs/1703.05175. Shapes: T tasks, N ways, K shots, Q queries, D embedding.

Deviations from the paper:
- a step may hold several episodes (``tasks``), whose batch normalisation statistics are shared;
- AdamW with a cosine schedule in place of Adam with stepwise halving;
- a temperature divides the squared distances, 8 by default, with which early training is much faster (1 in the paper); cosine
  similarity may take their place;
- with ``exchange`` the images of a class are its support in turn, each turn an episode of its own; after Laenen & Bertinetto
  2021, "On episodes, prototypical networks, and few-shot learning", arXiv:2012.09831, whose loss takes all pairs of a batch;
- images are augmented; rotations as new classes are a knob and are drawn once per class of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.distances import DISTANCES, class_means, similarity_logits
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, MetricConfig, embedded, episode_loss, exchanged, training_shape
from search_spaces.domains import SWITCH, Choice, Float, Variant, When, knob


@dataclass(frozen=True)
class Config(MetricConfig):
    distance: str = knob(
        "euclidean", Choice(DISTANCES), doc="squared euclidean distance, or cosine similarity", source="Snell 2017"
    )
    temperature: float = knob(
        8.0, Float(0.5, 200.0, log=True), legal=Float(1e-4, 1e5), doc="divides the similarities", source="Snell 2017: 1",
        variants=(Variant(When("distance", "cosine"), 0.1, Float(0.01, 1.0, log=True)),),
    )  # fmt: skip
    exchange: bool = knob(
        False, SWITCH, source="after Laenen & Bertinetto 2021",
        doc="the images of a class take turns as its support, so that one step's embeddings serve shots + queries episodes",
    )  # fmt: skip


class Prototypical(MetricLearner):
    """The encoder and nothing else: prototypes are means of its embeddings."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.f = config.new_encoder(context)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        support, query = embedded(self.f, episodes)
        labels, ways = (episodes.support_label, episodes.query_label), episodes.shape.ways
        if self.config.exchange:
            turns = episodes.shape.shots + episodes.shape.queries
            support, query = exchanged(support, query, ways)
            labels = labels[0].repeat_interleave(turns, dim=0), labels[1].repeat_interleave(turns, dim=0)
        return episode_loss(self.compare(support, labels[0], query, ways), labels[1])

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        prototypes = class_means(support, support_label, ways)  # [t, N, D]
        return similarity_logits(query, prototypes, self.config.distance, self.config.temperature)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="prototypical",
    family="fewshot",
    paper="Snell, Swersky & Zemel 2017, arXiv:1703.05175",
    summary="class means in a learned embedding, softmax over negative distances",
    config=Config,
    learner=Prototypical,
    uses_labels=True,
)
