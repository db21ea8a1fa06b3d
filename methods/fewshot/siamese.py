"""Siamese networks: learn whether two images show the same class, then classify by the most similar support image.

Koch, Zemel & Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition" (ICML deep learning workshop).
``distance: weighted_l1`` is the paper's: the logit of "same" is a learned weighting of |z1 - z2|. ``distance: euclidean``
trains the pairs by the contrastive loss with a margin (Hadsell, Chopra & LeCun 2006) instead.

Shapes: T tasks, S support images, Q queries, N ways, D embedding.

Deviations from the paper:
- pairs are all those of a support and a query image of an episode, same and different weighing one half each, in place of pairs
  drawn in equal numbers;
- no sigmoid on the embedding, and an encoder of the study's choice; AdamW in place of layer-wise momentum SGD;
- with several shots a class's score is the mean over its support images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.distances import class_means, squared_distances, weighted_l1
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, EpisodicConfig, embedded, training_shape
from search_spaces.domains import Choice, Float, When, knob


@dataclass(frozen=True)
class Config(EpisodicConfig):
    distance: str = knob(
        "weighted_l1", Choice(("weighted_l1", "euclidean")), doc="how two embeddings are compared", source="Koch 2015"
    )
    margin: float = knob(
        4.0, Float(0.5, 20.0, log=True), legal=Float(1e-6, 1e6), doc="distance to keep between different classes",
        when=When("distance", "euclidean"), source="Hadsell 2006",
    )  # fmt: skip


class Siamese(MetricLearner):
    """The twin encoder and its comparison of pairs."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.f = config.new_encoder(context)
        if config.distance == "weighted_l1":
            self.alpha = nn.Parameter(torch.full((self.f.dim,), -(self.f.dim**-0.5)))
            self.bias = nn.Parameter(torch.ones(()))

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        support, query = embedded(self.f, episodes)  # [t, S, D], [t, Q, D]
        same = (episodes.query_label.unsqueeze(2) == episodes.support_label.unsqueeze(1)).float()  # [t, Q, S]
        scores = self.pairs(support, query)  # [t, Q, S]
        if self.config.distance == "weighted_l1":
            loss = binary_cross_entropy_with_logits(scores, same, reduction="none")
            said = scores.detach() > 0
        else:
            distance = (-scores).clamp_min(1e-12).sqrt()
            loss = torch.where(same.bool(), -scores, relu(self.config.margin - distance).square())
            said = distance.detach() < self.config.margin / 2
        # One half for the pairs of the same class and one half for the others, whatever their numbers.
        weight = 0.5 * same / same.mean() + 0.5 * (1 - same) / (1 - same).mean()
        return Loss((weight * loss).mean(), {"pair_accuracy": (weight * (said == same.bool())).mean()})

    def pairs(self, support: Tensor, query: Tensor) -> Tensor:
        """float32 [t, Q, S]: the logit of "same", or minus the squared distance."""
        if self.config.distance == "euclidean":
            return -squared_distances(query, support)
        return weighted_l1(query, support, self.alpha) + self.bias

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        scores = self.pairs(support, query)
        return class_means(scores.transpose(1, 2), support_label, ways).transpose(1, 2)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="siamese",
    family="fewshot",
    paper="Koch, Zemel & Salakhutdinov 2015, ICML deep learning workshop; Hadsell, Chopra & LeCun 2006, CVPR",
    summary="same or different; classify by the most similar support image",
    config=Config,
    learner=Siamese,
    uses_labels=True,
)
