"""Matching networks: a query's label is the attention-weighted sum of the support labels.

Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra 2016, https://arxiv.org/abs/1606.04080. Shapes: T tasks, S support images,
Q queries, N ways, D embedding.

Deviations from the paper:
- a temperature divides the cosines (1 in the paper, where the softmax can hardly become sharp);
- with full-context embeddings the bidirectional LSTM reads the support set in the order given, which is class by class;
- episodes, augmentation and optimizer as in ``prototypical``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.distances import DISTANCES, class_logsumexp, similarity_logits
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, MetricConfig, episode_loss, training_shape
from search_spaces.domains import SWITCH, Choice, Float, Int, Variant, When, knob


@dataclass(frozen=True)
class Config(MetricConfig):
    distance: str = knob("cosine", Choice(DISTANCES), doc="what attention compares by", source="Vinyals 2016: cosine")
    temperature: float = knob(
        0.1, Float(0.01, 1.0, log=True), legal=Float(1e-4, 1e5), doc="divides the similarities", source="Vinyals 2016: 1",
        variants=(Variant(When("distance", "euclidean"), 8.0, Float(0.5, 200.0, log=True)),),
    )  # fmt: skip
    context: bool = knob(False, SWITCH, doc="full-context embeddings (LSTMs over the support set)", source="Vinyals 2016")
    context_steps: int = knob(
        5, Int(1, 10), legal=Int(1, 100), doc="attention steps of a query over the support set", when=When("context", True),
        source="Vinyals 2016",
    )  # fmt: skip


class FullContext(nn.Module):
    """Embeddings that depend on the whole support set (the paper's appendix A)."""

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.both_ways = nn.LSTM(dim, dim, batch_first=True, bidirectional=True)
        self.attending = nn.LSTMCell(2 * dim, dim)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """support [T, S, D], query [T, Q, D] -> the same shapes."""
        forth, back = self.both_ways(support)[0].chunk(2, dim=2)
        support = support + forth + back  # g(x_i, S)
        own = query.flatten(0, 1)  # f'(x)
        hidden = cell = read = torch.zeros_like(own)
        for _ in range(self.steps):
            hidden, cell = self.attending(torch.cat([own, read], dim=1), (hidden, cell))
            hidden = hidden + own
            attention = (hidden.view_as(query) @ support.transpose(1, 2)).softmax(dim=2)  # [T, Q, S]
            read = (attention @ support).flatten(0, 1)
        return support, hidden.view_as(query)


class Matching(MetricLearner):
    """Attention over the support set."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.f = config.new_encoder(context)
        self.full = FullContext(self.f.dim, config.context_steps) if config.context else None

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        return episode_loss(self.query_logits(episodes), episodes.query_label)

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        with torch.autocast(support.device.type, enabled=False):
            support, query = support.float(), query.float()
            if self.full is not None:
                support, query = self.full(support, query)
            logits = similarity_logits(query, support, self.config.distance, self.config.temperature)  # [t, Q, S]
            return class_logsumexp(logits, support_label, ways)  # log of each class's attention, up to a constant: [t, Q, N]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="matching",
    family="fewshot",
    paper="Vinyals et al. 2016, arXiv:1606.04080",
    summary="attention over the support set",
    config=Config,
    learner=Matching,
    uses_labels=True,
)
