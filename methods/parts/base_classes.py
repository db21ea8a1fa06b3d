"""Training on the base classes as an ordinary classifier: what the fine-tuned few-shot methods share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.functional import cross_entropy

from methods.batch import Batch
from methods.contracts import Loss, Optimizer
from methods.parts.augment import Augment
from methods.parts.episodes import FewShotConfig
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class BaseConfig(FewShotConfig):
    """Knobs of a classifier of the base classes."""

    lr: float = knob(
        4e-3, Float(5e-4, 3e-2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Loshchilov & Hutter 2019",
    )  # fmt: skip
    batch_size: int = knob(
        64, Int(16, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="labelled images per step",
        source="Chen 2019: 16",
    )  # fmt: skip

    def adamw(self) -> Optimizer:
        return Optimizer("adamw", self.lr * self.batch_size / 256, self.weight_decay)


def classified(model: nn.Module, augment: Augment, batch: Batch) -> Loss:
    """Cross-entropy of a labelled batch, images [b, C, H, W], by ``model``'s logits [b, K]."""
    logits = model(augment(batch.images, batch.stream))
    right = (logits.detach().argmax(dim=1) == batch.labels()).float().mean()
    return Loss(cross_entropy(logits.float(), batch.labels()), {"accuracy": right})
