"""Metric learning: embeddings trained by a loss on pairs, triplets or softmaxes of a class-balanced batch.

The losses, with their papers, are those of ``methods.parts.losses``: pairwise contrastive in both forms, triplet, N-pair,
InfoNCE, NCE and the non-parametric softmax. Mining chooses the pairs and triplets. A query belongs to the nearest class mean.
Shapes: T tasks, N ways, M images per class, D embedding.

Deviations from the papers:
- every episode is one class-balanced batch of N classes with M = shots + queries images; a loss looks inside its episode only;
- InfoNCE, NCE and N-pair take the next image of the same class as the positive, and all images of other classes as negatives;
- NCE learns its log Z (Gutmann & Hyvarinen 2010), starting at the number of labelled images;
- the non-parametric softmax runs over the class means of the support images instead of a memory bank of single images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.distances import class_means, similarity_logits
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, MetricConfig, embedded, training_shape
from methods.parts.losses import (
    FORMS,
    MINING,
    info_nce,
    n_pair,
    nce,
    next_of_class,
    nonparametric_softmax,
    pairwise_contrastive,
    triplet,
)  # fmt: skip
from search_spaces.domains import SWITCH, Choice, Float, When, knob

LOSSES = ("triplet", "contrastive", "n_pair", "info_nce", "nce", "softmax")
MARGINS = When("loss", "triplet", "contrastive")
SOFTMAXES = When("loss", "info_nce", "nce", "softmax")


@dataclass(frozen=True)
class Config(MetricConfig):
    loss: str = knob("triplet", Choice(LOSSES), doc="what embeddings are trained by", source="S4")
    mining: str = knob("semi_hard", Choice(MINING), doc="which pairs and triplets", when=MARGINS, source="Schroff 2015")
    margin: float = knob(
        0.5, Float(0.1, 2.0, log=True), legal=Float(1e-6, 1e6), doc="margin between classes", when=MARGINS,
        source="Schroff 2015: .2",
    )  # fmt: skip
    form: str = knob(
        "hadsell",
        Choice(FORMS),
        doc="max(0, m - d)^2 or max(0, m - d^2)",
        when=When("loss", "contrastive"),
        source="Hadsell 2006; S4",
    )
    normalise: bool = knob(True, SWITCH, doc="embeddings of unit length", when=MARGINS, source="Schroff 2015")
    temperature: float = knob(
        0.1,
        Float(0.02, 1.0, log=True),
        legal=Float(1e-4, 1e3),
        doc="divides the cosines",
        when=SOFTMAXES,
        source="Wu 2018: .07",
    )


class MetricLearning(MetricLearner):
    """An encoder and a loss on its embeddings."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.f = config.new_encoder(context)
        self.images = int((context.data.label >= 0).sum())
        if config.loss == "nce":
            self.log_constant = nn.Parameter(torch.tensor(math.log(self.images)))

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        support, query = (self.scaled(z) for z in embedded(self.f, episodes))  # [t, N*K, D], [t, N*Q, D]
        tasks = zip(support, episodes.support_label, query, episodes.query_label, strict=True)
        total = torch.stack([self.task_loss(*task) for task in tasks]).mean()
        guess = self.compare(support.detach(), episodes.support_label, query.detach(), episodes.shape.ways).argmax(dim=2)
        return Loss(total, {"accuracy": (guess == episodes.query_label).float().mean()})

    def task_loss(self, support: Tensor, support_label: Tensor, query: Tensor, query_label: Tensor) -> Tensor:
        c = self.config
        if c.loss == "softmax":
            ways = self.shape.ways
            bank = class_means(support.unsqueeze(0), support_label.unsqueeze(0), ways)[0]  # [N, D]
            return nonparametric_softmax(query, query_label, normalize(bank, dim=1), c.temperature)
        z, label = torch.cat([support, query]), torch.cat([support_label, query_label])  # [N*M, D], [N*M]
        if c.loss == "triplet":
            return triplet(z, label, c.margin, c.mining)  # type: ignore[arg-type]
        if c.loss == "contrastive":
            return pairwise_contrastive(z, label, c.margin, c.form, c.mining)  # type: ignore[arg-type]
        positive = z[next_of_class(label)]
        if c.loss == "n_pair":
            return n_pair(z, positive, label)
        others = z[(label[:, None] != label[None]).nonzero()[:, 1].view(len(z), -1)]  # [N*M, (N-1)*M, D]
        if c.loss == "info_nce":
            return info_nce(z, positive, others, c.temperature)
        return nce(z, positive, others, c.temperature, self.images, self.log_constant)

    def scaled(self, z: Tensor) -> Tensor:
        """float32 embeddings as the loss compares them."""
        c = self.config
        plain = c.loss == "n_pair" or (c.loss in MARGINS.values and not c.normalise)
        return z.float() if plain else normalize(z.float(), dim=-1)

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        support, query = self.scaled(support), self.scaled(query)
        means = class_means(support, support_label, ways)  # [t, N, D]
        if self.config.loss == "n_pair":  # Trained by dot products.
            return query @ means.transpose(1, 2)
        distance = "euclidean" if self.config.loss in MARGINS.values else "cosine"
        return similarity_logits(query, means, distance, 1.0)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="metric_learning",
    family="fewshot",
    paper="Hadsell et al. 2006; Schroff et al. 2015, arXiv:1503.03832; Sohn 2016; Wu et al. 2018, arXiv:1805.01978",
    summary="pairs, triplets or softmaxes over a class-balanced batch",
    config=Config,
    learner=MetricLearning,
    uses_labels=True,
)
