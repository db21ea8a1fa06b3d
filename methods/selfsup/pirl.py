"""PIRL: an image and its jigsaw agree with the image's row in a memory bank.

Misra & van der Maaten 2019, "Self-supervised learning of pretext-invariant representations", arXiv:1912.01991.
With s the cosine over t, h(a, b) = exp(s(a, b)) / (exp(s(a, b)) + sum over noise rows n of exp(s(b, n))), the loss is
weight x L(m, g(jigsaw)) + (1 - weight) x L(m, f(image)), where L(m, b) = -log h - sum over the noise of log(1 - h(b, n)).

Deviations: AdamW instead of SGD; smaller batches; BatchNorm after both projections, so that embeddings are spread over the
sphere; an image's row starts at its first embedding, not at random, since with few visits the first one counts (the image's
term then only repels); the noise rows are one sample for the whole batch; BatchNorm keeps the statistics of whole images alone;
patches leave random gaps in a 3 x 3 grid (2 x 2 on images too small for it) and are encoded one by one, as in the paper.
Raises: TrainingError where patches would be smaller than 4 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.contrast import initialise_bank, sample_negative_indices, update_bank
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.losses.precision import full_precision
from methods.parts.modes import still_statistics
from methods.parts.patches import SMALLEST, jittered_grid, mosaic, patch_side, shuffled
from methods.parts.queue import MemoryBank
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.07, Float(0.05, 1.0, log=True), legal=Float(1e-3, 1e2), doc="of the softmax over the bank", source="Misra 2019: .07"
    )
    weight: float = knob(0.5, Float(0.0, 1.0), doc="of the jigsaw's term; the rest is the image's", source="Misra 2019: .5")
    negatives: int = knob(
        4096, Int(256, 16384, power_of_two=True), legal=Int(1, 65536), unit="images", doc="noise rows a step",
        source="Misra 2019: 32000",
    )  # fmt: skip
    momentum: float = knob(
        0.5, Float(0.0, 0.9), legal=Float(0.0, 0.9999), doc="of the bank's rows, per visit of an image", source="Misra 2019: .5"
    )
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the embedding", source="Misra 2019: 128")


@full_precision
def agreement(memory: Tensor, z: Tensor, noise: Tensor, same: Tensor, temperature: float) -> Tensor:
    """L(m, z): mean over rows of -log h(m, z) - sum over the noise of log(1 - h(z, n)).

    Args:
        memory, z: float [B, D] of unit length.
        noise: float [K, D].
        same: bool [B, K], where the noise is the row's own image and does not count.
        temperature: t.
    """
    against = (z @ noise.T).masked_fill(same, float("-inf"))
    scores = torch.cat([(memory * z).sum(1, keepdim=True), against], dim=1) / temperature  # B 1+K
    log_h = scores.log_softmax(1)
    rest = torch.log1p(-log_h[:, 1:].exp().clamp_max(1 - 1e-6))  # B K
    return (-log_h[:, 0] - rest.sum(1)).mean()


class PIRL(Learner):
    """Encoder with two heads, one for images and one for shuffled patches, and the bank."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        dim, width = self.backbone.dim, config.head_width
        side = min(context.shape[1:])
        self.cells = 3 if side // 3 >= SMALLEST + 1 else 2
        self.side = patch_side(context.shape, self.backbone, 0.8 * (side // self.cells), "pirl")
        self.head = mlp(dim, 0, width, 1, last_norm=True)
        self.patch_head = nn.Linear(dim, width)
        self.join = mlp(width * self.cells**2, 0, width, 1, last_norm=True)
        self.bank = MemoryBank(len(context.data), width)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def puzzle(self, images: Tensor, stream: RandomStream) -> Tensor:
        """The patches [B, P, C, s, s] of a view in random order."""
        view = self.augment(images, stream.fork("view"))
        patches = jittered_grid(view, self.cells, self.side, stream.fork("places"))
        return shuffled(patches, stream.fork("order").permutations(self.cells**2))

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        patches = self.puzzle(batch.images, batch.stream.fork("jigsaw"))  # B P C s s
        with still_statistics(self.backbone):  # BatchNorm's running ones are those of whole images
            each = self.patch_head(self.backbone(patches.flatten(0, 1)))  # BP D
        jigsaw = F.normalize(self.join(each.view(len(batch), -1)).float(), dim=1)  # B D
        view = self.augment(batch.images, batch.stream.fork("image"))  # B C H W
        image = F.normalize(self.head(self.backbone(view)).float(), dim=1)  # B D
        initialise_bank(self.bank, batch.index, image, step.world)
        memory = self.bank.read(batch.index)  # B D
        drawn = sample_negative_indices(len(self.bank.bank), c.negatives, batch.stream.fork("noise"))  # K
        noise, same = self.bank.read(drawn), batch.index[:, None] == drawn  # K D, B K
        self.fresh = image.detach()
        of_jigsaw = agreement(memory, jigsaw, noise, same, c.temperature)
        of_image = agreement(memory, image, noise, same, c.temperature)
        parts = {"jigsaw": of_jigsaw.detach(), "image": of_image.detach()}
        return Loss(c.weight * of_jigsaw + (1 - c.weight) * of_image, parts)

    def after_step(self, step: Step) -> None:
        update_bank(self.bank, step.from_pool().index, self.fresh, self.config.momentum, step.world)

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        puzzle = mosaic(self.puzzle(batch.images, batch.stream.fork("jigsaw")), border=1)  # n C cS cS
        h = batch.images.shape[2]
        return {"original | jigsaw": beside(batch.images, F.interpolate(puzzle, (h, h)))}


METHOD = Method(
    name="pirl",
    family="selfsup",
    paper="Misra & van der Maaten 2019, arXiv:1912.01991",
    summary="an image and its jigsaw agree in a memory bank",
    config=Config,
    learner=PIRL,
)
