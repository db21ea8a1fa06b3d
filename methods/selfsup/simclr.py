"""SimCLR: two views of an image find each other among all views of the batch.

Chen, Kornblith, Norouzi & Hinton 2020, "A simple framework for contrastive learning of visual representations",
arXiv:2002.05709. NT-Xent over the 2B - 2 views of other images, gathered over all workers.

The switches of contrastive practice are knobs: `normalise` (without it the temperature lies between 10 and 100),
`temperature`, `head_depth` (0: the loss sees the encoder itself) and `negatives`.

Deviations: AdamW instead of LARS; batches of hundreds, not thousands, and small images by default, so blur and crops are
those of the shared recipe. `negatives` draws a fresh random subset of the batch for every view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.contrast import contrastive_accuracy, sampled_nt_xent
from methods.parts.encoders import Encoder
from methods.parts.heads import projection_head
from methods.parts.losses import nt_xent
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import SWITCH, Float, Int, Variant, When, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    normalise: bool = knob(True, None, legal=SWITCH, doc="l2-normalise embeddings before comparing", source="S4; Chen 2020")
    temperature: float = knob(
        0.5, Float(0.05, 1.0, log=True), legal=Float(1e-3, 1e3), doc="of the softmax over similarities",
        variants=(Variant(When("normalise", False), 30.0, Float(10.0, 100.0, log=True)),),
        source="Chen 2020: .5 on CIFAR-10, 10 to 100 without normalisation",
    )  # fmt: skip
    head_depth: int = knob(2, Int(0, 3), doc="layers of the projection head, dropped after training", source="Chen 2020: 2")
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the projection", source="Chen 2020: 128")
    negatives: int = knob(0, None, legal=Int(0, 131072), doc="negatives a view is told from; 0 for all", source="S4")


class SimCLR(Learner):
    """Encoder and projection head."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        dim = self.backbone.dim
        self.head: nn.Module = projection_head(dim, dim, config.head_width, config.head_depth)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        views = torch.cat(two_views(self.augment, batch))  # 2B C H W
        one, two = self.head(self.backbone(views)).chunk(2)  # B D each
        if c.negatives:
            stream = batch.stream.fork("negatives")
            total = sampled_nt_xent(one, two, c.temperature, step.world, c.normalise, c.negatives, stream)
        else:
            total = nt_xent(one, two, c.temperature, step.world, c.normalise)
        return Loss(total, {"pretext_accuracy": contrastive_accuracy(one, two, step.world)})

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="simclr",
    family="selfsup",
    paper="Chen et al. 2020, arXiv:2002.05709",
    summary="two views of an image find each other among the batch",
    config=Config,
    learner=SimCLR,
)
