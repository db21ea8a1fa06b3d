"""MAE: hide most patches, encode the visible ones only, and paint the hidden ones with a small decoder.

He, Chen, Xie, Li, Dollar & Girshick 2021, "Masked autoencoders are scalable vision learners", arXiv:2111.06377.
The mean squared error is taken over hidden patches, whose pixels are normalised patch by patch where `normalised_targets`
is on. The decoder is thrown away.

Deviations: encoder and decoder sized for small images, see the study's encoder and the decoder's knobs; the embedding is the
mean of the encoded patch tokens; the class token is encoded but not decoded.
Raises: TrainingError where the study's encoder has no patch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.augment import to_float
from methods.parts.decoders import TokenDecoder
from methods.parts.encoders import Encoder, TokenEncoder
from methods.parts.vit import patches, unpatch
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import SWITCH, Float, Int, knob

EPS = 1e-6
"""Added to a patch's variance before targets are divided by its root (He 2021, appendix)."""


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    mask_ratio: float = knob(
        0.75,
        Float(0.3, 0.95),
        legal=Float(0.0, 0.99),
        unit="of the patches",
        doc="share of hidden patches",
        source="He 2021: .75",
    )
    normalised_targets: bool = knob(
        True, SWITCH, doc="normalise the pixels of each patch to predict", source="He 2021, table 1d"
    )
    decoder_width: int = knob(
        64, None, legal=Int(8, 2048), unit="units, a multiple of 32", doc="width of the decoder", source="He 2021: 512"
    )
    decoder_depth: int = knob(1, None, legal=Int(1, 16), unit="blocks", doc="depth of the decoder", source="He 2021: 8")


def random_masking(stream: RandomStream, count: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Which patches are seen.

    Args:
        stream: of the batch.
        count: N, patches of an image.
        ratio: share hidden; at least one patch is hidden and one seen.
    Returns:
        int64 [B, V], the visible patches, and int64 [B, N], each patch's place in the shuffled row; hidden where >= V.
    """
    order = stream.permutations(count)
    visible = min(max(round(count * (1 - ratio)), 1), count - 1)
    return order[:, :visible], order.argsort(dim=1)


def targets(images: Tensor, side: int, normalise: bool) -> Tensor:
    """float32 [B, N, C s^2]: what the decoder has to paint, from images in [0, 1]."""
    x = patches(images.float(), side)
    if not normalise:
        return x
    var, mean = torch.var_mean(x, dim=2, keepdim=True)
    return (x - mean) / (var + EPS).sqrt()


class MAE(Learner):
    """A token encoder and a small decoder."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        backbone = context.new_encoder()
        if not isinstance(backbone, TokenEncoder):
            raise TrainingError(f"mae needs an encoder with patch tokens, got {context.encoder.name}; set encoder: vit_tiny")
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = backbone
        numbers = context.shape[0] * backbone.patch**2
        self.decoder = TokenDecoder(backbone.dim, backbone.grid, numbers, config.decoder_width, config.decoder_depth)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def reconstruct(self, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """The decoder's patches float32 [B, N, C s^2], and bool [B, N], which of them were hidden."""
        tokens = self.backbone.embed(images)  # B N D
        visible, restore = random_masking(stream, tokens.shape[1], self.config.mask_ratio)  # B V, B N
        seen = tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))  # B V D
        encoded = self.backbone.encode(seen)[:, 1:]  # B V D
        return self.decoder(encoded, restore), restore >= visible.shape[1]

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        images = self.augment(batch.images, batch.stream.fork("view"))  # B C H W
        painted, hidden = self.reconstruct(images, batch.stream.fork("mask"))  # B N M, B N
        wanted = targets(images, self.backbone.patch, self.config.normalised_targets)  # B N M
        error = (painted - wanted).square().mean(2)  # B N
        return Loss((error * hidden).sum() / hidden.sum())

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        images = to_float(batch.images)
        painted, hidden = self.reconstruct(images, batch.stream.fork("mask"))
        real = targets(images, self.backbone.patch, False)  # n N M
        if self.config.normalised_targets:
            var, mean = torch.var_mean(real, dim=2, keepdim=True)
            painted = painted * (var + EPS).sqrt() + mean
        shown = [torch.where(hidden[:, :, None], there, real) for there in (torch.full_like(real, 0.5), painted)]
        masked, whole = (unpatch(x, self.backbone.grid, images.shape[1]) for x in shown)
        return {"original | masked | reconstruction": beside(images, masked, whole)}


METHOD = Method(
    name="mae",
    family="selfsup",
    paper="He et al. 2021, arXiv:2111.06377",
    summary="encode the visible patches and paint the hidden ones",
    config=Config,
    learner=MAE,
    encoder="vit",
)
