"""Meta-SGD: MAML whose inner learning rates, one per parameter, are learned with the starting weights.

Li, Zhou, Chen & Li 2017, https://arxiv.org/abs/1707.09835, on learn2learn's MetaSGD. Shapes: T tasks, N ways, Q queries.

Deviations from the paper:
- all inner rates start at ``inner_lr`` (the paper draws them from .005 to .1); the head has one rate per input, shared by the
  classes, so that they fit any number of ways;
- several inner steps are possible (the paper takes one); ``first_order`` drops the second derivatives;
- optimizer, heads and batch normalisation as in ``maml``. Weight decay would pull the learned rates to zero: the default is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Episodes, Step
from methods.contracts import Context, EpisodicLearner, Loss, Method, Optimizer
from methods.parts.adaptation import TaskNet, adapt_tasks, differentiable, evaluated
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, episode_loss, training_shape
from methods.parts.gradient_knobs import InnerConfig
from methods.parts.l2l import learn2learn
from methods.parts.tasknorm import update_running
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(InnerConfig):
    inner_lr: float = knob(
        0.1, Float(0.005, 1.0, log=True), legal=Float(1e-6, 100), doc="every inner learning rate at the start",
        source="Li 2017: .005 to .1",
    )  # fmt: skip


class MetaSgd(EpisodicLearner):
    """learn2learn's MetaSGD around encoder and head."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        MetaSGD = learn2learn("algorithms").MetaSGD

        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        net = TaskNet(config.new_encoder(context), self.shape.ways, config.head)
        rates = [torch.full_like(p, config.inner_lr) for p in net.body.parameters()]
        rates += [torch.full((1, net.head.dim), config.inner_lr), torch.full((1,), config.inner_lr)]
        lrs = nn.ParameterList(nn.Parameter(rate) for rate in rates)
        self.meta: Any = MetaSGD(net, lrs=lrs, first_order=config.first_order)

    @property
    def net(self) -> TaskNet:
        return self.meta.module

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        with differentiable(episodes.query.device):
            logits, moments = adapt_tasks(self.meta.clone, episodes, self.config.steps)  # [t, N*Q, N]
        update_running(self.net.body, moments, step.world)
        loss = episode_loss(logits, episodes.query_label)
        rate = torch.stack([rate.detach().mean() for rate in self.meta.lrs]).mean()
        return Loss(loss.total, {**loss.parts, "inner_lr": rate})

    def query_logits(self, episodes: Episodes) -> Tensor:
        def clone(cheap: bool) -> Any:
            fast = self.meta.clone()
            fast.first_order = cheap or self.config.first_order
            return fast

        return evaluated(clone, episodes, self.config.steps, graph=self.training and torch.is_grad_enabled())

    def encoder(self) -> Encoder:
        return self.net.body

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="meta_sgd",
    family="fewshot",
    paper="Li, Zhou, Chen & Li 2017, arXiv:1707.09835",
    summary="MAML with learned inner learning rates",
    config=Config,
    learner=MetaSgd,
    uses_labels=True,
)
