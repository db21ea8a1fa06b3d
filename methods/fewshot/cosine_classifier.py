"""Cosine classifier: cosines to learned class vectors in training, and to new ones, fitted to the support set, in every task.

Chen et al. 2019, "A closer look at few-shot classification", https://arxiv.org/abs/1904.04232 (Baseline++); Gidaris & Komodakis
2018, https://arxiv.org/abs/1804.09458.

Deviations from the papers:
- a task's vectors start at the normalised means of its unit support embeddings (Qi et al. 2018, https://arxiv.org/abs/1712.07136)
  in place of random ones, and take full-batch gradient steps; ``steps: 0`` keeps the means;
- AdamW with a cosine schedule in place of Adam; the temperature is a knob and not learned.
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
from methods.parts.heads import Classifier, CosineHead
from methods.parts.support_heads import cosine_logits
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(BaseConfig):
    temperature: float = knob(
        0.1, Float(0.02, 0.5, log=True), legal=Float(1e-4, 1e3), doc="divides the cosines", source="Gidaris 2018: .1"
    )
    steps: int = knob(
        20, Int(0, 100), legal=Int(0, 10_000), unit="steps", doc="gradient steps on a support set", source="Chen 2019: 100"
    )
    head_lr: float = knob(
        0.03, Float(0.003, 0.3, log=True), legal=Float(1e-6, 100), doc="learning rate of those steps", source="Chen 2019: .01"
    )


class CosineClassifier(MetricLearner):
    """Classifier of the base classes with a cosine head; ``compare`` fits the new vectors."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = config.augment(context)
        encoder = config.new_encoder(context)
        self.model = Classifier(encoder, CosineHead(encoder.dim, context.classes, config.temperature))

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        return classified(self.model, self.augment, step.from_labelled())

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        c = self.config
        return cosine_logits(support, support_label, query, ways, c.steps, c.head_lr, c.temperature)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return augmented_pictures(self.augment, batch)


METHOD = Method(
    name="cosine_classifier",
    family="fewshot",
    paper="Chen et al. 2019, arXiv:1904.04232; Gidaris & Komodakis 2018, arXiv:1804.09458",
    summary="cosines to class vectors, in training and in every task",
    config=Config,
    learner=CosineClassifier,
    uses_labels=True,
)
