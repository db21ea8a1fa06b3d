"""Reptile: move the starting weights towards the weights that ordinary training on each task ends at.

Nichol, Achiam & Schulman 2018, https://arxiv.org/abs/1803.02999 (the batched version, algorithm 2):
phi <- phi + lr * mean over tasks of (phi_task - phi). Shapes: T tasks, N ways, n images of a task, m of an inner step.

Deviations from the paper:
- inner steps take images of a task at random, support and queries alike, in place of passes over them; Adam without momentum
  (beta1 = 0), as in the paper, but its state starts anew in every task;
- the outer learning rate falls by a cosine in place of linearly;
- head and batch normalisation as in ``maml``: evaluation is transductive, the paper's better variant.

The loop's plain SGD makes the outer step: the gradient handed to it is phi minus the mean of phi_task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.batch import Batch, BatchSpec, Episodes, Step
from methods.contracts import Context, EpisodicLearner, Loss, Method, Optimizer
from methods.parts.adaptation import HEADS, TaskNet, differentiable
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, EpisodicConfig, training_shape
from methods.parts.l2l import learn2learn
from methods.parts.tasknorm import collected, per_task, update_running
from search_spaces.domains import Choice, Float, Int, knob

BETA = 0.999
EPSILON = 1e-8


@dataclass(frozen=True)
class Config(EpisodicConfig):
    lr: float = knob(
        1.0, Float(0.1, 1.0, log=True), legal=Float(1e-6, 10), unit="per step", source="Nichol 2018: 1",
        doc="outer step: share of the way to the tasks' weights",
    )  # fmt: skip
    weight_decay: float = 0.0  # Not a knob here: the outer step is no descent on a loss.
    ways: int = knob(
        5, Int(5, 20), legal=Int(2, 1000), unit="classes", source="Nichol 2018",
        doc="classes of a training episode; at most as many as the data offers are taken",
    )  # fmt: skip
    queries: int = knob(
        9, Int(1, 15), legal=Int(1, 100), unit="images", source="Nichol 2018: 10 or 15 images per class in all",
        doc="further images per class in training; fewer where the data has fewer",
    )  # fmt: skip
    tasks: int = knob(
        4,
        Int(2, 16),
        legal=Int(1, 1024),
        unit="tasks",
        doc="tasks of a meta-batch, all workers together",
        source="Nichol 2018: 5",
    )
    inner_lr: float = knob(
        3e-3, Float(3e-4, 2e-2, log=True), legal=Float(1e-8, 10), doc="learning rate of the inner Adam",
        source="Nichol 2018: 1e-3",
    )  # fmt: skip
    steps: int = knob(5, Int(3, 20), legal=Int(1, 1000), unit="steps", doc="inner steps in training", source="Nichol 2018: 5")
    inner_batch: int = knob(
        10, Int(5, 40), legal=Int(1, 10_000), unit="images", doc="images of an inner step in training", source="Nichol 2018: 10"
    )
    test_steps: int = knob(
        50,
        Int(10, 100),
        legal=Int(1, 10_000),
        unit="steps",
        doc="steps on a support set in evaluation",
        source="Nichol 2018: 50",
    )
    head: str = knob("learned", Choice(HEADS), doc="where a task's linear head starts", source="Nichol 2018")


class Reptile(EpisodicLearner):
    """Encoder and head, and copies of them that train on a task."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.shape = training_shape(config, context)
        self.views = EpisodeViews(config, context)
        self.net = TaskNet(config.new_encoder(context), self.shape.ways, config.head)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(episodes=self.shape)

    def loss(self, step: Step) -> Loss:
        drawn = step.from_episodes()
        episodes = self.views(drawn)
        images = torch.cat([episodes.support, episodes.query], dim=1)  # [t, n, C, H, W]
        labels = torch.cat([episodes.support_label, episodes.query_label], dim=1)  # [t, n]
        n = images.shape[1]
        size = min(self.config.inner_batch, n)
        order = drawn.stream.fork("inner").uniform(self.config.steps, n).argsort(dim=2)[..., :size]  # [t, steps, m]
        originals = list(self.net.parameters())
        away = [torch.zeros_like(p) for p in originals]
        moments, losses = [], []
        with differentiable(images.device):
            for task in range(len(images)):
                batches = [(images[task, rows], labels[task, rows]) for rows in order[task]]
                fast, first, last = self._trained(batches, self.shape.ways)
                moments.append(first)
                losses.append(last)
                with torch.no_grad():
                    for sum_, start, end in zip(away, originals, fast.parameters(), strict=True):
                        sum_ += (start - end) / len(images)
            # A function of phi whose gradient is phi - mean(phi_task), and whose value is the inner loss.
            pull = torch.stack([(p * d).sum() for p, d in zip(originals, away, strict=True)]).sum()
        update_running(self.net.body, moments, step.world)
        inner = torch.stack(losses).mean()
        return Loss(inner + pull - pull.detach(), {"inner_loss": inner})

    def _trained(self, batches: list[tuple[Tensor, Tensor]], ways: int) -> tuple[TaskNet, list[Tensor], Tensor]:
        """A copy trained on one batch after another, its first pass's moments, and its last loss."""
        fast = _copy(self.net, ways)
        per_task(fast, moments=True)
        weights = list(fast.parameters())
        squares = [torch.zeros_like(p) for p in weights]
        first: list[Tensor] = []
        loss = torch.zeros(())
        for number, (x, y) in enumerate(batches, start=1):
            loss = cross_entropy(fast(x), y)  # x [m, C, H, W]
            if number == 1:
                first = collected(fast)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            with torch.no_grad():
                for p, g, v in zip(weights, grads, squares, strict=True):
                    if g is not None:
                        v.lerp_(g.square(), 1 - BETA)
                        p.addcdiv_(g, (v / (1 - BETA**number)).sqrt() + EPSILON, value=-self.config.inner_lr)
        return fast, first, loss.detach()

    def query_logits(self, episodes: Episodes) -> Tensor:
        with differentiable(episodes.query.device):
            episodes = replace(episodes, support_label=episodes.support_label.clone())  # See ``adaptation.evaluated``.
            logits = []
            for support, label, query in zip(episodes.support, episodes.support_label, episodes.query, strict=True):
                fast, _, _ = self._trained([(support, label)] * self.config.test_steps, episodes.shape.ways)
                with torch.no_grad():
                    logits.append(fast(query))  # [N*Q, N]
            return torch.stack(logits)

    def encoder(self) -> Encoder:
        return self.net.body

    def optimizer(self) -> Optimizer:
        return Optimizer("sgd", lr=self.config.lr, warmup=0.0, momentum=0.0)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch)


def _copy(net: TaskNet, ways: int) -> TaskNet:
    """A network of its own with the same weights, its head ready for ``ways`` classes."""
    clone_module = learn2learn("utils").clone_module

    fast: TaskNet = clone_module(net)
    fast.head.begin(ways)
    for module in fast.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = value.detach().clone().requires_grad_()  # type: ignore[assignment]
    return fast


METHOD = Method(
    name="reptile",
    family="fewshot",
    paper="Nichol, Achiam & Schulman 2018, arXiv:1803.02999",
    summary="first-order: move towards the weights that each task ends at",
    config=Config,
    learner=Reptile,
    uses_labels=True,
)
