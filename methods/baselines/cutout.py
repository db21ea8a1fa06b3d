"""Cutout: cross-entropy on labelled images with a random square hidden.

DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout", arXiv:1708.04552.

Deviations: the square lies wholly inside the image, so that `mask_ratio` is the share that is really hidden (the paper lets
it hang over the edge), and takes the image's aspect. It grows with `augmentation_strength`, as the augmentation before it
does. Grey filling. AdamW instead of SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.baselines import supervised
from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(supervised.Config):
    """Knobs: the supervised yardstick's, and the hidden share."""

    mask_ratio: float = knob(
        0.25, Float(0.05, 0.6), legal=Float(0.0, 0.95), unit="share of the area", doc="size of the hidden square",
        source="DeVries 2017: 16 x 16 of 32 x 32",
    )  # fmt: skip


class Cutout(Learner):
    """A classifier trained on images with a hole."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength, config.mask_ratio)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        x = self.augment(batch.images, batch.stream)  # B C H W
        return Loss(F.cross_entropy(self.model(x), batch.labels(), label_smoothing=self.config.label_smoothing))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        x = self.augment(batch.images, batch.stream)
        return {"original and cut": torch.cat([batch.images.float() / 255, x], dim=3)}


METHOD = Method(
    name="cutout",
    family="baseline",
    paper="DeVries & Taylor 2017, arXiv:1708.04552",
    summary="cross-entropy with a random square of each image hidden",
    config=Config,
    learner=Cutout,
    uses_labels=True,
)
