"""Rotation GAN: a discriminator that tells real images from generated ones, and also how they are turned.

Chen, Zhai, Ritter, Lucic & Houlsby 2019, "Self-supervised GANs via auxiliary rotation loss", arXiv:1811.11212. The study's
encoder is the discriminator's trunk. Real and fake are told on upright images; the rotation loss teaches the discriminator on
real images (`rotation_weight`) and the generator on its own (`generator_rotation`), so the two cooperate there.
A `rotation_weight` and `generator_rotation` of 0 is a plain GAN.

Deviations: AdamW for both, which step at once at one learning rate; no spectral normalisation, the encoder keeps its own
layers; every image is turned once at random instead of a quarter of the batch four times; crops and flips of real images.
Raises: UserError where images are not square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import rotate_quarter
from methods.parts.decoders import ImageDecoder
from methods.parts.encoders import Encoder
from methods.parts.gan import discriminator_loss, frozen, generator_loss
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    lr: float = knob(
        5e-4, Float(1e-4, 2e-3, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Chen 2019: 2e-4",
    )  # fmt: skip
    rotation_weight: float = knob(
        1.0, Float(0.2, 2.0, log=True), legal=Float(0.0, 100.0), doc="beta, rotation loss of the discriminator",
        source="Chen 2019: 1",
    )  # fmt: skip
    generator_rotation: float = knob(
        0.2, None, legal=Float(0.0, 100.0), doc="alpha, rotation loss of the generator", source="Chen 2019: .2"
    )
    latent: int = knob(128, None, legal=Int(1, 4096), unit="units", doc="width of the noise", source="Chen 2019: 128")


class Discriminator(nn.Module):
    """The encoder with two linear heads: scores [B, 1] of being real, and logits [B, 4] of the turn."""

    def __init__(self, backbone: Encoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.real = nn.Linear(backbone.dim, 1)
        self.turn = nn.Linear(backbone.dim, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of upright images [B, C, H, W] followed by as many turned ones: scores [B, 1], and logits [B, 4] of the turned."""
        upright, turned = self.backbone(images).chunk(2)
        return self.real(upright).float(), self.turn(turned).float()


class RotationGAN(Learner):
    """Discriminator and generator."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.discriminator = Discriminator(context.new_encoder())
        self.generator = ImageDecoder(config.latent, context.shape)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def fakes(self, stream: RandomStream) -> Tensor:
        """Generated images [B, C, H, W] in [0, 1]."""
        images: Tensor = self.generator(stream.normal(self.config.latent))
        return images

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        real = self.augment(batch.images, batch.stream.fork("view"))  # B C H W
        fake = self.fakes(batch.stream.fork("noise"))  # B C H W
        turns = batch.stream.fork("turns").integers(4)  # B
        with_turned = [torch.cat([x, rotate_quarter(x, turns)]) for x in (real, fake)]  # 2B C H W each
        real_score, real_turn = self.discriminator(with_turned[0])  # B 1, B 4
        fake_score, _ = self.discriminator(with_turned[1].detach())
        fooling_score, fake_turn = frozen(self.discriminator, with_turned[1])
        rotation = F.cross_entropy(real_turn, turns)
        verdict = discriminator_loss(real_score, fake_score)
        fooled = generator_loss(fooling_score)
        own_rotation = F.cross_entropy(fake_turn, turns)
        total = verdict + c.rotation_weight * rotation + fooled + c.generator_rotation * own_rotation
        parts = {
            "discriminator": verdict.detach(),
            "generator": fooled.detach(),
            "rotation": rotation.detach(),
            "pretext_accuracy": (real_turn.detach().argmax(1) == turns).float().mean(),
        }
        return Loss(total, parts)

    def encoder(self) -> Encoder:
        return self.discriminator.backbone

    def optimizer(self) -> Optimizer:
        c = self.config
        return Optimizer("adamw", c.lr * c.batch_size / 256, c.weight_decay, warmup=0.1, betas=(0.5, 0.999))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        with judged(self):
            return {"original | generated": beside(batch.images, self.fakes(batch.stream.fork("noise")))}


METHOD = Method(
    name="rotation_gan",
    family="selfsup",
    paper="Chen et al. 2019, arXiv:1811.11212",
    summary="a GAN whose discriminator also tells rotations",
    config=Config,
    learner=RotationGAN,
)
