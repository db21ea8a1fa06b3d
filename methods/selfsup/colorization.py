"""Colorization: tell the colour of every place from the lightness of the image.

Zhang, Isola & Efros 2016, "Colorful image colorization", arXiv:1603.08511. The encoder sees L of the Lab colour space; a small
decoder gives for every place of a quarter of the resolution a distribution over bins of the ab plane, trained by cross-entropy;
`rebalance` weighs rare colours up.

Deviations: AdamW instead of Adam at a fixed rate; hard bins instead of five soft neighbours; colour frequencies are those of a
sample of the data, not smoothed; the encoder's last two layers feed the decoder. The scored encoder drops colours itself.
Raises: TrainingError where images are not in colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.augment import to_float
from methods.parts.colour import bin_colours, bin_weights, colour_bins, lab_to_rgb, needs_colour, possible_bins
from methods.parts.composites import GreyEncoder, lab01
from methods.parts.decoders import MapDecoder, map_channels
from methods.parts.encoders import Encoder
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import SWITCH, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    bins: int = knob(
        12, Int(6, 22), legal=Int(2, 64), unit="cells a side of the ab plane", doc="how finely colours are told",
        source="Zhang 2016: 22, cells of 10",
    )  # fmt: skip
    rebalance: bool = knob(True, SWITCH, doc="weigh rare colours up", source="Zhang 2016, section 2.2")


class Colorization(Learner):
    """Encoder of the lightness, and a decoder to bins of colour."""

    numbers: Tensor
    weights: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        needs_colour("colorization", context)
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = GreyEncoder(context.new_encoder())
        self.size = (max(context.shape[1] // 4, 1), max(context.shape[2] // 4, 1))
        self.register_buffer("numbers", possible_bins(config.bins).clone())
        count = int(self.numbers.max()) + 1
        weights = bin_weights(context.data.images, self.numbers, self.size) if config.rebalance else torch.ones(count)
        self.register_buffer("weights", weights)
        self.decoder = MapDecoder(map_channels(self.backbone)[self.backbone.layers[-1]], count, self.size)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def scores(self, images: Tensor) -> Tensor:
        """float32 [B, Q, h, w]: scores of colour bins, from the lightness of the images alone."""
        scores: Tensor = self.decoder(self.backbone.maps(images)[self.backbone.layers[-1]])
        return scores

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        x = self.augment(batch.images, batch.stream)  # B 3 H W
        bins = colour_bins(F.adaptive_avg_pool2d(lab01(x)[:, 1:], self.size), self.numbers)  # B h w
        scores = self.scores(x)  # B Q h w
        each = F.cross_entropy(scores, bins, reduction="none") * self.weights[bins]  # B h w
        right = (scores.detach().argmax(1) == bins).float().mean()
        return Loss(each.mean(), {"pretext_accuracy": right})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = to_float(batch.images)
        lab = lab01(x)
        with judged(self):
            p = (self.scores(x) / 0.38).softmax(1)  # n Q h w, the paper's annealed mean
        ab = torch.einsum("nqhw,qc->nchw", p, bin_colours(self.numbers))
        painted = torch.cat([lab[:, :1], F.interpolate(ab, x.shape[2:], mode="bilinear")], dim=1)
        return {"original | lightness | coloured": beside(x, GreyEncoder.grey(x), lab_to_rgb(painted))}


METHOD = Method(
    name="colorization",
    family="selfsup",
    paper="Zhang et al. 2016, arXiv:1603.08511",
    summary="tell every place's colour from the lightness",
    config=Config,
    learner=Colorization,
)
