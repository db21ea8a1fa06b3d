"""CMC: the lightness of an image and its colours find each other.

Tian, Krishnan & Isola 2019, "Contrastive multiview coding", arXiv:1906.05849. One encoder sees L, another ab of the Lab
colour space; each embedding has to find the other view's of the same image, both ways. Negatives come from the batch, or with
`negatives_from` bank from memory banks of both views. The embedding that is scored is both halves side by side.

Deviations: AdamW instead of SGD; softmax InfoNCE instead of the paper's NCE with a constant; the halves have half the study's
encoder's width each. As in the paper both views come from one random crop and flip of the image.
Raises: TrainingError where images are not in colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.colour import halved, needs_colour
from methods.parts.composites import lab01
from methods.parts.contrast import contrastive_accuracy, in_batch_info_nce, sample_negative_indices, update_bank
from methods.parts.encoders import Encoder
from methods.parts.heads import projection_head
from methods.parts.losses import info_nce
from methods.parts.queue import MemoryBank
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Choice, Float, Int, When, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.1, Float(0.05, 1.0, log=True), legal=Float(1e-3, 1e2), doc="of the softmax over similarities", source="Tian 2019: .07"
    )
    negatives_from: str = knob(
        "batch", Choice(("batch", "bank")), doc="where negatives come from", source="Tian 2019: a memory bank"
    )
    negatives: int = knob(
        4096, Int(256, 16384, power_of_two=True), legal=Int(1, 65536), unit="images", doc="bank rows a step",
        when=When("negatives_from", "bank"), source="Tian 2019: 16384",
    )  # fmt: skip
    momentum: float = knob(
        0.5, Float(0.0, 0.9), legal=Float(0.0, 0.9999), doc="of the banks' rows, per visit of an image",
        when=When("negatives_from", "bank"), source="Tian 2019: .5",
    )  # fmt: skip
    head_width: int = knob(128, None, legal=Int(1, 8192), unit="units", doc="width of the embedding", source="Tian 2019: 128")


class CMC(Learner):
    """Two half encoders with a projection each; banks of both views where negatives come from them."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        needs_colour("cmc", context)
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = halved(context)
        light, colour = self.backbone.light.dim, self.backbone.colour.dim
        self.light_head = projection_head(light, light, config.head_width, 2)
        self.colour_head = projection_head(colour, colour, config.head_width, 2)
        banked = config.negatives_from == "bank"
        self.light_bank = MemoryBank(len(context.data), config.head_width) if banked else None
        self.colour_bank = MemoryBank(len(context.data), config.head_width) if banked else None

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        lab = lab01(self.augment(batch.images, batch.stream))  # B 3 H W
        a = F.normalize(self.light_head(self.backbone.light(lab[:, :1])).float(), dim=1)  # B D
        b = F.normalize(self.colour_head(self.backbone.colour(lab[:, 1:])).float(), dim=1)  # B D
        if self.light_bank is None or self.colour_bank is None:
            total = in_batch_info_nce(a, b, c.temperature, step.world) + in_batch_info_nce(b, a, c.temperature, step.world)
        else:
            self.fresh = (a.detach(), b.detach())
            noise = sample_negative_indices(len(self.light_bank.bank), c.negatives, batch.stream.fork("noise"))  # K
            total = info_nce(a, b, self.colour_bank.read(noise), c.temperature)
            total = total + info_nce(b, a, self.light_bank.read(noise), c.temperature)
        return Loss(total, {"pretext_accuracy": contrastive_accuracy(a, b, step.world)})

    def after_step(self, step: Step) -> None:
        if self.light_bank is None or self.colour_bank is None:
            return
        index, momentum = step.from_pool().index, self.config.momentum
        light, colour = self.fresh
        update_bank(self.light_bank, index, light, momentum, step.world)
        update_bank(self.colour_bank, index, colour, momentum, step.world)

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        lab = lab01(self.augment(batch.images, batch.stream))
        grey = [channel.repeat(1, 3, 1, 1) for channel in lab.split(1, dim=1)]
        return {"original | lightness | a | b": beside(batch.images, *grey)}


METHOD = Method(
    name="cmc",
    family="selfsup",
    paper="Tian et al. 2019, arXiv:1906.05849",
    summary="lightness and colours of an image find each other",
    config=Config,
    learner=CMC,
)
