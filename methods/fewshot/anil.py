"""ANIL (almost no inner loop): MAML whose inner steps adapt the head alone.

Raghu, Raghu, Bengio & Vinyals 2020, https://arxiv.org/abs/1909.09157, on learn2learn's MAML around the head.
Shapes: T tasks, N ways, S support images, Q queries, D embedding.

Deviations from the paper:
- since the encoder does not adapt, all tasks pass through it in one batch, whose batch normalisation statistics are shared in
  training; evaluation uses the running ones and is not transductive (in ``maml`` it is);
- heads and meta-optimizer as in ``maml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.adaptation import TaskHead, differentiable
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, episode_loss, training_shape
from methods.parts.gradient_knobs import InnerConfig
from methods.parts.l2l import learn2learn
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(InnerConfig):
    steps: int = knob(
        5, Int(1, 10), legal=Int(1, 100), unit="steps", doc="gradient steps on a support set", source="Raghu 2020: 5"
    )
    inner_lr: float = knob(
        0.1, Float(0.005, 1.0, log=True), legal=Float(1e-6, 100), doc="learning rate of the steps on a support set",
        source="Raghu 2020: .1",
    )  # fmt: skip


class Anil(MetricLearner):
    """An encoder, and learn2learn's MAML around the head; ``compare`` adapts the head."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        MAML = learn2learn("algorithms").MAML

        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.f = config.new_encoder(context)
        head = TaskHead(self.f.dim, self.shape.ways, config.head)
        self.maml: Any = MAML(head, lr=config.inner_lr, first_order=config.first_order, allow_nograd=True)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        return episode_loss(self.query_logits(episodes), episodes.query_label)

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        graph = self.training and torch.is_grad_enabled()
        with differentiable(query.device):
            # Clones, because tensors made in inference mode may not be saved for the backward pass.
            like = self.maml.module.zero
            tasks = zip(support.to(like).clone(), support_label.clone(), query.to(like).clone(), strict=True)
            return torch.stack([self._adapted(*task, ways, graph) for task in tasks])  # [t, Q, N]

    def _adapted(self, support: Tensor, label: Tensor, query: Tensor, ways: int, graph: bool) -> Tensor:
        fast = self.maml.clone(first_order=self.config.first_order or not graph)
        fast.module.begin(ways)
        for _ in range(self.config.steps):
            fast.adapt(cross_entropy(fast(support), label))  # support [S, D]
        logits: Tensor = fast(query)  # [Q, N]
        return logits if graph else logits.detach()

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="anil",
    family="fewshot",
    paper="Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157",
    summary="MAML on the head only",
    config=Config,
    learner=Anil,
    uses_labels=True,
)
