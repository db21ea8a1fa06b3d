"""Split-brain autoencoder: the lightness tells the colours and the colours tell the lightness, each with half of the network.

Zhang, Isola & Efros 2017, "Split-brain autoencoders: unsupervised learning by cross-channel prediction", arXiv:1611.09842.
One half encoder sees L and classifies ab into bins, the other sees ab and classifies L into bins, both for every place of a
quarter of the resolution. The embedding that is scored is both halves side by side.

Deviations: AdamW instead of SGD; two separate encoders of half the width instead of one with grouped convolutions; hard bins.
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
from methods.parts.colour import bin_colours, colour_bins, halved, lab_to_rgb, needs_colour, possible_bins
from methods.parts.composites import lab01
from methods.parts.decoders import MapDecoder, map_channels
from methods.parts.encoders import Encoder
from methods.selfsup.shared import SelfConfig, beside, judged
from search_spaces.domains import Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    bins: int = knob(
        12, Int(6, 22), legal=Int(2, 64), unit="cells a side of the ab plane", doc="how finely colours are told",
        source="Zhang 2017: 22, cells of 10",
    )  # fmt: skip
    light_bins: int = knob(
        20, None, legal=Int(2, 100), unit="bins", doc="how finely the lightness is told", source="Zhang 2017: 100"
    )


class SplitBrain(Learner):
    """Two half encoders, each with a decoder to the other's channels."""

    numbers: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        needs_colour("split_brain", context)
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = halved(context)
        self.size = (max(context.shape[1] // 4, 1), max(context.shape[2] // 4, 1))
        self.register_buffer("numbers", possible_bins(config.bins).clone())
        self.last = self.backbone.layers[-1]
        light, colour = map_channels(self.backbone.light)[self.last], map_channels(self.backbone.colour)[self.last]
        self.to_colour = MapDecoder(light, int(self.numbers.max()) + 1, self.size)
        self.to_light = MapDecoder(colour, config.light_bins, self.size)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def scores(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """Of scaled Lab [B, 3, H, W]: scores of colour bins [B, Q, h, w], and of lightness bins [B, P, h, w]."""
        colour = self.to_colour(self.backbone.light.maps(lab[:, :1])[self.last])
        light = self.to_light(self.backbone.colour.maps(lab[:, 1:])[self.last])
        return colour, light

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        lab = lab01(self.augment(batch.images, batch.stream))  # B 3 H W
        small = F.adaptive_avg_pool2d(lab, self.size)  # B 3 h w
        colour_bin = colour_bins(small[:, 1:], self.numbers)  # B h w
        light_bin = (small[:, 0] * self.config.light_bins).long().clamp_max(self.config.light_bins - 1)  # B h w
        colour, light = self.scores(lab)
        of_colour, of_light = F.cross_entropy(colour, colour_bin), F.cross_entropy(light, light_bin)
        return Loss(of_colour + of_light, {"colour": of_colour.detach(), "lightness": of_light.detach()})

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = to_float(batch.images)
        lab = lab01(x)
        with judged(self):
            colour, light = self.scores(lab)
        ab = torch.einsum("nqhw,qc->nchw", (colour / 0.38).softmax(1), bin_colours(self.numbers))
        middles = (torch.arange(self.config.light_bins, device=x.device) + 0.5) / self.config.light_bins
        told = torch.einsum("nphw,p->nhw", light.softmax(1), middles)[:, None]
        ab, told = (F.interpolate(y, x.shape[2:], mode="bilinear") for y in (ab, told))
        coloured, lit = torch.cat([lab[:, :1], ab], dim=1), torch.cat([told, lab[:, 1:]], dim=1)
        return {"original | colours told | lightness told": beside(x, lab_to_rgb(coloured), lab_to_rgb(lit))}


METHOD = Method(
    name="split_brain",
    family="selfsup",
    paper="Zhang et al. 2017, arXiv:1611.09842",
    summary="lightness and colours tell each other, with half a network each",
    config=Config,
    learner=SplitBrain,
)
