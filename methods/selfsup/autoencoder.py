"""Autoencoder: reconstruct the image through a bottleneck.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks", Science 313. The embedding passes
`bottleneck` units and a decoder back to pixels; the loss is the mean squared error.

Deviations: convolutions and end-to-end training with AdamW instead of stacked restricted Boltzmann machines; random crops and
flips, of which the crop itself is reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import to_float
from methods.parts.decoders import ImageDecoder
from methods.parts.encoders import Encoder
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    bottleneck: int = knob(
        64, Int(8, 256, power_of_two=True), legal=Int(1, 8192), unit="units", doc="width of the narrowest layer",
        source="Hinton 2006: 30",
    )  # fmt: skip


class Autoencoder(Learner):
    """Encoder, bottleneck and decoder."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.narrow = nn.Linear(self.backbone.dim, config.bottleneck)
        self.decoder = ImageDecoder(config.bottleneck, context.shape)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def reconstruct(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1]."""
        out: Tensor = self.decoder(self.narrow(self.backbone(images)))
        return out

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        x = self.augment(batch.images, batch.stream)  # B C H W
        return Loss(F.mse_loss(self.reconstruct(x), x))

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = to_float(batch.images)
        with judged(self):
            return {"original | reconstruction": beside(x, self.reconstruct(x))}


METHOD = Method(
    name="autoencoder",
    family="selfsup",
    paper="Hinton & Salakhutdinov 2006, Science 313",
    summary="reconstruct the image through a bottleneck",
    config=Config,
    learner=Autoencoder,
)
