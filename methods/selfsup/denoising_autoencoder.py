"""Denoising autoencoder: reconstruct the clean image from a corrupted one.

Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and composing robust features with denoising autoencoders", ICML.
The image is corrupted by Gaussian noise of sd `noise` and by hiding each of its squares with probability `mask_ratio`
(Vincent's masking noise, in squares of an eighth of the side, since single pixels of a photograph are easily guessed).

Deviations: convolutions and end-to-end training with AdamW instead of stacked layers; mean squared error instead of
cross-entropy; random crops and flips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import gaussian_noise, to_float
from methods.parts.decoders import ImageDecoder
from methods.parts.encoders import Encoder
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import Float, knob

SQUARES = 8
"""Squares along the longer side that are hidden or shown."""


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    noise: float = knob(
        0.1, Float(0.0, 0.5), legal=Float(0.0, 2.0), unit="of the range of pixels", doc="sd of the noise", source="Vincent 2010"
    )
    mask_ratio: float = knob(
        0.25, Float(0.0, 0.75), legal=Float(0.0, 0.95), doc="share of hidden squares", source="Vincent 2008: 0 to .5"
    )


def corrupted(images: Tensor, stream: RandomStream, noise: float, mask_ratio: float, middle: Tensor) -> Tensor:
    """Images [B, C, H, W] with noise and with hidden squares, which show the colour ``middle`` [C]; the range stays [0, 1]."""
    x = gaussian_noise(images, stream.fork("noise"), noise)
    h, w = images.shape[2:]
    size = max(h, w) // SQUARES or 1
    hidden = stream.fork("mask").chance(mask_ratio, 1, -(-h // size), -(-w // size))  # B 1 rows columns
    hidden = hidden.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :h, :w]
    return torch.where(hidden, middle.view(1, -1, 1, 1), x)


class DenoisingAutoencoder(Learner):
    """Encoder and decoder."""

    middle: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.decoder = ImageDecoder(self.backbone.dim, context.shape)
        self.register_buffer("middle", torch.tensor(context.data.mean))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def corrupt(self, images: Tensor, stream: RandomStream) -> Tensor:
        return corrupted(images, stream.fork("corruption"), self.config.noise, self.config.mask_ratio, self.middle)

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        x = self.augment(batch.images, batch.stream.fork("view"))  # B C H W
        painted = self.decoder(self.backbone(self.corrupt(x, batch.stream)))  # B C H W
        return Loss(F.mse_loss(painted, x))

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = to_float(batch.images)
        seen = self.corrupt(x, batch.stream)
        with judged(self):
            return {"original | corrupted | reconstruction": beside(x, seen, self.decoder(self.backbone(seen)))}


METHOD = Method(
    name="denoising_autoencoder",
    family="selfsup",
    paper="Vincent et al. 2008, ICML",
    summary="reconstruct the clean image from a corrupted one",
    config=Config,
    learner=DenoisingAutoencoder,
)
