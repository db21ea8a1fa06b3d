"""Model-agnostic meta-learning: weights from which a few gradient steps on the support set solve a new task.

Finn, Abbeel & Levine 2017, https://arxiv.org/abs/1703.03400, on learn2learn's MAML. ``first_order`` drops the second
derivatives (FOMAML). Shapes: T tasks, N ways, K shots, Q queries, D embedding.

Deviations from the paper:
- the meta-optimizer is AdamW with a cosine schedule in place of Adam; the meta-gradient's norm is clipped;
- ``head: zero``, the default, starts every task's linear head at zero (Kao et al. 2021, https://arxiv.org/abs/2106.15367), so
  that any number of ways can be evaluated, and learns much faster; the first inner step then moves the head alone, hence 3
  steps; ``head: learned`` is the paper's: its N rows are meta-learned; evaluated with fewer ways it takes the first rows, with
  more ways the further ones start at the mean row;
- the running statistics of batch normalisation, which only the exported, unadapted encoder uses, follow the moments of each
  task's first pass over its support set, averaged over the meta-batch.

As in the paper, batch normalisation inside a task uses the statistics of the images at hand, support and query apart, also in
evaluation: the query images of a task are normalised together (transductive), so its logits depend on all of its queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        0.1, Float(0.005, 1.0, log=True), legal=Float(1e-6, 100), source="Finn 2017: .4",
        doc="learning rate of the steps on a support set",
    )  # fmt: skip


class Maml(EpisodicLearner):
    """learn2learn's MAML around encoder and head."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        MAML = learn2learn("algorithms").MAML

        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        net = TaskNet(config.new_encoder(context), self.shape.ways, config.head)
        self.maml: Any = MAML(net, lr=config.inner_lr, first_order=config.first_order, allow_nograd=True)

    @property
    def net(self) -> TaskNet:
        return self.maml.module

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        episodes = self.views(step.from_episodes())
        with differentiable(episodes.query.device):
            logits, moments = adapt_tasks(self.maml.clone, episodes, self.config.steps)  # [t, N*Q, N]
        update_running(self.net.body, moments, step.world)
        return episode_loss(logits, episodes.query_label)

    def query_logits(self, episodes: Episodes) -> Tensor:
        def clone(cheap: bool) -> Any:
            return self.maml.clone(first_order=cheap or self.config.first_order)

        return evaluated(clone, episodes, self.config.steps, graph=self.training and torch.is_grad_enabled())

    def encoder(self) -> Encoder:
        return self.net.body

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


METHOD = Method(
    name="maml",
    family="fewshot",
    paper="Finn, Abbeel & Levine 2017, arXiv:1703.03400",
    summary="weights from which a few gradient steps solve a new task",
    config=Config,
    learner=Maml,
    uses_labels=True,
)
