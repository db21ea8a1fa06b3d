"""Inpainting: paint a hidden region of the image from what surrounds it.

Pathak, Krahenbuhl, Donahue, Darrell & Efros 2016, "Context encoders: feature learning by inpainting", arXiv:1604.07379.
A square of `mask_ratio` of the image's area shows the data's mean colour; the loss is the squared error inside it, plus
`adversarial_weight` times a discriminator's verdict on the painted image (0 leaves it out).

Deviations: AdamW instead of Adam at two rates; the square lies anywhere, not in the middle; the embedding is the pooled one, so
the bottleneck is narrower than the paper's channel-wise layer; hinge losses in the game, both sides stepping at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import to_float
from methods.parts.decoders import ImageDecoder
from methods.parts.encoders import Encoder
from methods.parts.gan import discriminator_loss, frozen, generator_loss
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    mask_ratio: float = knob(
        0.25, Float(0.05, 0.6), legal=Float(0.01, 0.95), doc="hidden share of the image's area", source="Pathak 2016: .25"
    )
    adversarial_weight: float = knob(
        0.0, None, legal=Float(0.0, 1.0), doc="weight of the discriminator's verdict", source="Pathak 2016: .001"
    )


def hidden_square(stream: RandomStream, height: int, width: int, share: float) -> Tensor:
    """bool [B, 1, H, W]: one box of that share of the area and of the image's aspect, anywhere inside each image."""
    place = stream.uniform(2)  # B 2

    def covered(n: int, u: Tensor) -> Tensor:
        length = min(max(round(n * share**0.5), 1), n)
        start = (u * (n - length + 1)).long()[:, None]
        pixel = torch.arange(n, device=u.device)
        return (pixel >= start) & (pixel < start + length)  # B n

    return (covered(height, place[:, 0])[:, :, None] & covered(width, place[:, 1])[:, None, :])[:, None]


def judge(channels: int, width: int = 32) -> nn.Sequential:
    """The discriminator: images [B, C, H, W] to scores [B, 1]."""
    layers: list[nn.Module] = []
    for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 1))


class Inpainting(Learner):
    """Encoder, decoder, and a discriminator where it has a weight."""

    middle: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.decoder = ImageDecoder(self.backbone.dim, context.shape)
        self.register_buffer("middle", torch.tensor(context.data.mean).view(1, -1, 1, 1))
        self.judge = judge(context.shape[0]) if config.adversarial_weight else None

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def holed(self, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Images with a hidden square, and bool [B, 1, H, W], where it is."""
        hidden = hidden_square(stream, images.shape[2], images.shape[3], self.config.mask_ratio)
        return torch.where(hidden, self.middle, images), hidden

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        x = self.augment(batch.images, batch.stream.fork("view"))  # B C H W
        holed, hidden = self.holed(x, batch.stream.fork("hole"))
        painted = self.decoder(self.backbone(holed))  # B C H W
        error = ((painted - x).square() * hidden).sum() / (hidden.sum() * x.shape[1])
        if self.judge is None:
            return Loss(error)
        whole = torch.where(hidden, painted, x)
        verdict = discriminator_loss(self.judge(x), self.judge(whole.detach()))
        fooled = generator_loss(frozen(self.judge, whole))
        total = error + c.adversarial_weight * fooled + verdict
        return Loss(total, {"error": error.detach(), "discriminator": verdict.detach()})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = to_float(batch.images)
        holed, hidden = self.holed(x, batch.stream.fork("hole"))
        with judged(self):
            painted = self.decoder(self.backbone(holed))
        return {"original | hidden | painted": beside(x, holed, torch.where(hidden, painted, x))}


METHOD = Method(
    name="inpainting",
    family="selfsup",
    paper="Pathak et al. 2016, arXiv:1604.07379",
    summary="paint a hidden region from what surrounds it",
    config=Config,
    learner=Inpainting,
)
