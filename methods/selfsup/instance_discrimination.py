"""Instance discrimination: every image is a class of its own; its weight vector is its own past embedding in a memory bank.

Wu, Xiong, Yu & Lin 2018, "Unsupervised feature learning via non-parametric instance discrimination", arXiv:1805.01978.
`loss` nce is the paper's binary noise-contrastive estimation with uniform noise: P(i|v) = exp(v f_i / t) / Z, Z a constant
estimated on the first batch, h = P / (P + m / N), and -log h(own) - sum over the noise of log(1 - h). `loss` softmax is the
non-parametric softmax over the whole bank that it estimates.

Deviations: AdamW instead of SGD; BatchNorm after the linear projection to `head_width`, so that embeddings are spread from the
start as the constant Z supposes; the m noise images are one sample for the whole batch, so that the scores are one matrix
product; an image's row starts at its first embedding, not at random, since with few visits the first one counts (its own
term then has no gradient); the proximal term is off by default. With few visits an image the softmax learns sooner than its
estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.contrast import initialise_bank, sample_negative_indices, update_bank
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.losses import nce, nce_log_constant, nonparametric_softmax
from methods.parts.queue import MemoryBank
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.07, Float(0.05, 1.0, log=True), legal=Float(1e-3, 1e2), doc="of the softmax over the bank", source="Wu 2018: .07"
    )
    loss: str = knob("nce", Choice(("nce", "softmax")), doc="Wu's NCE, or the softmax it estimates", source="Wu 2018; S4")
    negatives: int = knob(
        4096, Int(256, 16384, power_of_two=True), legal=Int(1, 65536), unit="images", doc="m, noise images a step",
        source="Wu 2018: 4096",
    )  # fmt: skip
    momentum: float = knob(
        0.5, Float(0.0, 0.9), legal=Float(0.0, 0.9999), doc="of the bank's rows, per visit of an image", source="Wu 2018: .5"
    )
    proximal: float = knob(
        0.0, None, legal=Float(0.0, 100.0), doc="weight of staying near the bank's row", source="Wu 2018: 30"
    )
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the embedding", source="Wu 2018: 128")


class InstanceDiscrimination(Learner):
    """Encoder, a linear projection, and the bank."""

    log_z: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.head = mlp(self.backbone.dim, 0, config.head_width, 1, last_norm=True)
        self.bank = MemoryBank(len(context.data), config.head_width)
        self.register_buffer("log_z", torch.zeros(()))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        x = self.augment(batch.images, batch.stream)  # B C H W
        v = F.normalize(self.head(self.backbone(x)).float(), dim=1)  # B D
        initialise_bank(self.bank, batch.index, v, step.world)
        own = self.bank.read(batch.index)  # B D
        self.fresh = v.detach()
        parts = {"bank_cosine": (v.detach() * own).sum(1).mean()}
        if c.loss == "softmax":
            total = nonparametric_softmax(v, batch.index, self.bank.bank, c.temperature)
        else:
            images = len(self.bank.bank)
            noise = self.bank.read(sample_negative_indices(images, c.negatives, batch.stream.fork("noise")))  # m D
            if step.number == 0:
                self.log_z.copy_(nce_log_constant(v, noise, c.temperature, images, step.world))
            total = nce(v, own, noise, c.temperature, images, self.log_z)
        if c.proximal:
            total = total + c.proximal * (v - own).square().sum(1).mean()
        return Loss(total, parts)

    def after_step(self, step: Step) -> None:
        update_bank(self.bank, step.from_pool().index, self.fresh, self.config.momentum, step.world)

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.stream))}


METHOD = Method(
    name="instance_discrimination",
    family="selfsup",
    paper="Wu et al. 2018, arXiv:1805.01978",
    summary="tell every image from all others by a memory bank",
    config=Config,
    learner=InstanceDiscrimination,
)
