"""Fine-tuning baseline: an ordinary classifier of the base classes, and for every new task a new head on its frozen encoder.

Chen, Liu, Kira, Wang & Huang 2019, "A closer look at few-shot classification", https://arxiv.org/abs/1904.04232 (Baseline).

Deviations from the paper:
- the new linear layer is fitted by full-batch gradient descent on embeddings that are centred and scaled by the support set, so
  that one learning rate serves any encoder (the paper: 100 iterations of SGD with batches of 4 on raw embeddings);
- ``head: ridge`` fits it in closed form by least squares instead;
- AdamW with a cosine schedule in place of Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer
from methods.parts.base_classes import BaseConfig, classified
from methods.parts.encoders import Encoder
from methods.parts.episodes import augmented_pictures
from methods.parts.heads import Classifier
from methods.parts.support_heads import linear_logits, ridge_logits
from search_spaces.domains import Choice, Float, Int, When, knob

LINEAR = When("head", "linear")


@dataclass(frozen=True)
class Config(BaseConfig):
    head: str = knob("linear", Choice(("linear", "ridge")), doc="how a task's linear layer is fitted", source="Chen 2019")
    steps: int = knob(
        100, Int(20, 200), legal=Int(1, 10_000), unit="steps", doc="gradient steps on a support set", when=LINEAR,
        source="Chen 2019",
    )  # fmt: skip
    head_lr: float = knob(
        0.3, Float(0.03, 3.0, log=True), legal=Float(1e-6, 100), doc="learning rate of those steps", when=LINEAR,
        source="Chen 2019: .01 on raw embeddings",
    )  # fmt: skip
    head_decay: float = knob(
        1e-3, Float(1e-4, 1.0, log=True), legal=Float(0, 100), doc="weight decay of a task's head", source="Chen 2019"
    )


class FinetuneBaseline(MetricLearner):
    """Classifier of the base classes; ``compare`` fits the new head."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = config.augment(context)
        self.model = Classifier(config.new_encoder(context), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        return classified(self.model, self.augment, step.from_labelled())

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        c = self.config
        if c.head == "ridge":
            return ridge_logits(support, support_label, query, ways, c.head_decay)
        return linear_logits(support, support_label, query, ways, c.steps, c.head_lr, c.head_decay)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return augmented_pictures(self.augment, batch)


METHOD = Method(
    name="finetune_baseline",
    family="fewshot",
    paper="Chen et al. 2019, arXiv:1904.04232",
    summary="a classifier of the base classes; a new linear layer for every task",
    config=Config,
    learner=FinetuneBaseline,
    uses_labels=True,
)
