"""Distillation: several models are tuned on the labels, and a student learns their mean prediction for every image of the pool.

Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531; with few labels and a large pool
Chen et al. 2020, arXiv:2006.10029; with pseudo-labels from several tuned models, whose probabilities are averaged, Zhang et al.
2025, "Revisiting semi-supervised learning in the era of foundation models", arXiv:2503.09707.

Deviations: teachers differ by their seed alone, not by what is tuned. They are asked images as they are while the student is
shown augmented views, and not the whole pool beforehand. The student begins as the last teacher, since few steps are left to
it; it is as large.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapt.tuning import TuneConfig, Tuning, augmented, tuned_classifier
from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels, RateGroup, SharedConfig, Stage
from methods.encoder import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import Frozen
from methods.parts.losses import sharpen, soft_cross_entropy
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    layer_decay: float = knob(
        0.8, Float(0.5, 1.0), legal=Float(0.0, 1.0), unit="of the next block's", doc="learning rate of every block",
        source="Clark 2020: .8; Bao 2021: .65",
    )  # fmt: skip
    teachers: int = knob(
        1, Int(1, 3), legal=Int(1, 20), doc="models whose predictions are averaged", source="Zhang 2025: several"
    )
    teacher_share: float = knob(
        0.6, Float(0.3, 0.8), legal=Float(0.05, 0.95), unit="of the training", doc="length of all teachers' stages together",
        source="this project",
    )  # fmt: skip
    distil_temperature: float = knob(
        0.5, Float(0.1, 2.0, log=True), legal=Float(0.01, 100.0), doc="softens, or below 1 sharpens, the teachers' mean",
        source="Chen 2020b: .1 to 1",
    )  # fmt: skip
    distil_weight: float = knob(
        0.5, Float(0.1, 1.0), legal=Float(0.0, 1.0), doc="of the teachers' predictions, the rest is the labels'",
        source="Hinton 2015: much larger than the labels'",
    )  # fmt: skip

    def batch_spec(self) -> BatchSpec:
        """Of the student."""
        return BatchSpec(pool=self.batch_size, labelled=self.batch_size)

    def plan(self) -> tuple[Stage, ...]:
        each = self.teacher_share / self.teachers
        teachers = (Stage(f"teacher {k + 1}", each, Teacher) for k in range(self.teachers))
        return (*teachers, Stage("student", 1 - self.teacher_share, Student))


class Teacher(Learner):
    """One model, tuned on the labels, and those before it, which stay."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        before = context.previous
        assert before is None or isinstance(before, Teacher), "teachers come first"
        self.earlier = nn.ModuleList() if before is None else before.all()
        self.tuning = Tuning(config, context, tuned_classifier(config, context, METHOD.name), config.layer_decay)

    def all(self) -> nn.ModuleList:
        """This model and those before it, as they are now, frozen."""
        return nn.ModuleList([*self.earlier, Frozen(self.tuning.model)])

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.tuning.config.batch_size)

    def loss(self, step: Step) -> Loss:
        return self.tuning.loss(step)

    def encoder(self) -> Encoder:
        return self.tuning.encoder()

    def predictor(self) -> nn.Module:
        return self.tuning.predictor()

    def optimizer(self) -> Optimizer:
        return self.tuning.optimizer()

    def rate_groups(self) -> tuple[RateGroup, ...]:
        return self.tuning.rate_groups()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.tuning.pictures(batch)


class Student(Learner):
    """The last teacher goes on, on labelled images and on what all teachers say about the pool."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        before = context.previous
        assert isinstance(before, Teacher), "a student follows a teacher"
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.teachers, self.model = before.all(), before.tuning.model

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c, labelled, pool = self.config, step.from_labelled(), step.from_pool()
        q = mean_prediction(self.teachers, pool.images, c.distil_temperature)  # B K
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, B K
        supervised = F.cross_entropy(logits_x, labelled.labels())
        distilled = soft_cross_entropy(logits_u, q).mean()
        guess = q.argmax(1)
        parts = {
            "supervised": supervised.detach(),
            "distilled": distilled.detach(),
            "agreement": (logits_u.detach().argmax(1) == guess).float().mean(),
        }
        total = (1 - c.distil_weight) * supervised + c.distil_weight * distilled
        return Loss(total, parts, PseudoLabels(pool.index, guess, torch.ones_like(q[:, 0])))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def rate_groups(self) -> tuple[RateGroup, ...]:
        return self.model.rate_groups(self.config.layer_decay, self.config.head_rate)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return augmented(self.augment, batch)


class Taught(Learner):
    """A trained model goes on, on labelled images and on what others have said about the pool beforehand."""

    said: Tensor

    def __init__(self, config: SharedConfig, context: Context, model: Classifier, said: Tensor) -> None:
        """
        Args:
            model: to begin as.
            said: float [N, K], probabilities for every image of the pool.
        """
        super().__init__()
        self.config, self.augment = config, context.augment("weak", config.augmentation_strength)
        # What a method kept as an average of weights took no gradient there.
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.register_buffer("said", said)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=self.config.batch_size, labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, B K
        supervised = F.cross_entropy(logits_x, labelled.labels())
        distilled = soft_cross_entropy(logits_u, self.said[pool.index]).mean()
        return Loss((supervised + distilled) / 2, {"supervised": supervised.detach(), "distilled": distilled.detach()})

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", self.config.lr * self.config.batch_size / 256, self.config.weight_decay)


def taught(model: Classifier, said: Tensor) -> Method:
    """The method that trains ``model`` on, as ``Taught``."""
    learner = partial(Taught, model=model, said=said)
    return Method("taught", "adapt", "Hinton et al. 2015", "an ensemble's student", SharedConfig, learner, uses_labels=True)


def mean_prediction(models: nn.ModuleList, images: Tensor, temperature: float) -> Tensor:
    """float32 [B, K]: the mean of the models' probabilities, raised to 1 / temperature, rows summing to 1."""
    return sharpen(torch.stack([model(images).float().softmax(1) for model in models]).mean(0), temperature)


METHOD = Method(
    name="distill",
    family="adapt",
    paper="Hinton et al. 2015, arXiv:1503.02531; Zhang et al. 2025, arXiv:2503.09707",
    summary="tuned models label the pool together, and a student learns that",
    config=Config,
    stages=Config.plan,
    uses_labels=True,
)
