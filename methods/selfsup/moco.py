"""MoCo: a query finds its key, made by a slow copy of the encoder, among a queue of past keys.

He, Fan, Wu, Xie & Girshick 2020, "Momentum contrast for unsupervised visual representation learning", arXiv:1911.05722, with
the head, augmentation and temperature of version 2 (Chen, Fan, Girshick & He 2020, arXiv:2003.04297).

Shuffled BatchNorm: keys are encoded in `shuffle_groups` groups, drawn by one permutation of the global batch, each normalised
by its own statistics, as the GPUs of the paper do; so a query cannot recognise its key by the statistics of their batch.
A group is spread over all workers with synchronised statistics, which makes any number of workers give one result.

Deviations: AdamW instead of SGD. BatchNorm in the head's hidden layer, which short trainings need (version 3 has it). Queries
are normalised by the statistics of the whole batch. `normalise` and `head_depth` are switches.
Raises: TrainingError where the queue is longer than the data: a query would meet old keys of its own image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.contrast import key_accuracy
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder
from methods.parts.heads import projection_head
from methods.parts.losses import info_nce
from methods.parts.queue import Queue
from methods.selfsup.shared import SelfConfig, beside
from methods.world import World
from search_spaces.domains import SWITCH, Float, Int, Variant, When, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    normalise: bool = knob(True, None, legal=SWITCH, doc="l2-normalise embeddings before comparing", source="S4; He 2020")
    temperature: float = knob(
        0.2, Float(0.05, 0.5, log=True), legal=Float(1e-3, 1e3), doc="of the softmax over similarities",
        variants=(Variant(When("normalise", False), 30.0, Float(10.0, 100.0, log=True)),), source="Chen 2020b: .2",
    )  # fmt: skip
    momentum: float = knob(
        0.99, Float(0.9, 0.9999, log1m=True), legal=Float(0.0, 0.999999), doc="of the key encoder's average, per step",
        source="He 2020: .999 over 200 epochs; short trainings need a faster teacher",
    )  # fmt: skip
    queue: int = knob(
        1024, Int(256, 65536, power_of_two=True), legal=Int(1, 1048576), unit="keys", doc="negatives kept from past steps",
        source="He 2020: 65536", within_images=True,
    )  # fmt: skip
    head_depth: int = knob(2, None, legal=Int(0, 3), doc="layers of the projection head", source="Chen 2020b: 2")
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the projection", source="He 2020: 128")
    shuffle_groups: int = knob(
        4, None, legal=Int(1, 64), doc="groups of shuffled BatchNorm among the keys; 1 is plain BatchNorm",
        source="He 2020: 8 GPUs",
    )  # fmt: skip


class MoCo(Learner):
    """Query encoder with head, their slow copy for the keys, and the queue."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        if config.queue > len(context.data):
            raise TrainingError(
                f"moco.queue must not exceed the number of training images, {len(context.data)}, got {config.queue}; lower it"
            )
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        dim = self.backbone.dim
        self.query = nn.Sequential(self.backbone, projection_head(dim, dim, config.head_width, config.head_depth))
        self.key = Ema(self.query)
        self.queue = Queue(config.queue, config.head_width if config.head_depth else dim)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def embed(self, network: nn.Module, images: Tensor) -> Tensor:
        z: Tensor = network(images).float()
        return F.normalize(z, dim=1) if self.config.normalise else z

    @torch.no_grad()
    def keys(self, batch: Batch, world: World) -> Tensor:
        """The keys of all workers' images [G, D], in the order of the global batch, by shuffled BatchNorm."""
        x = world.gather(self.augment(batch.images, batch.stream.fork("key")))  # G C H W
        order = batch.stream.fork("shuffle").permutation()
        groups = [self.embed(self.key, x[rows[world.rows(len(rows))]]) for rows in self.groups(order, world)]
        shuffled = torch.cat([world.gather(k) for k in groups])  # G D
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)

    def groups(self, order: Tensor, world: World) -> tuple[Tensor, ...]:
        """The shuffled batch in groups of a multiple of 4 images and of the workers: the same groups for 1, 2 and 4 workers."""
        unit = math.lcm(4, world.size)
        each = max(len(order) // self.config.shuffle_groups // unit, 1) * unit
        rows = list(order.split(each))
        if len(rows) > 1 and len(rows[-1]) < each:
            rows[-2:] = [torch.cat(rows[-2:])]
        return tuple(rows)

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        q = self.embed(self.query, self.augment(batch.images, batch.stream.fork("query")))  # B D
        k = self.keys(batch, step.world)  # G D, no gradient
        own = k[step.world.rows(len(k))]  # B D
        self.fresh = k
        total = info_nce(q, own, self.queue.keys, c.temperature, normalise=False)
        return Loss(total, {"pretext_accuracy": key_accuracy(q, own, self.queue.keys)})

    def after_step(self, step: Step) -> None:
        self.key.update(self.query, self.config.momentum)
        self.queue.push(self.fresh[-len(self.queue.keys) :])

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.query[1]

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        query, key = (self.augment(batch.images, batch.stream.fork(view)) for view in ("query", "key"))
        return {"original | query | key": beside(batch.images, query, key)}


METHOD = Method(
    name="moco",
    family="selfsup",
    paper="He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297",
    summary="a query finds its key, made by a slow encoder, in a queue",
    config=Config,
    learner=MoCo,
)
