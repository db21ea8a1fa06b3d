"""Mean teacher: the student agrees with the average of its own past weights.

Tarvainen & Valpola 2017, "Mean teachers are better role models", arXiv:1703.01780.
The consistency cost is the squared difference of class probabilities, averaged over classes and over all images, labelled
ones included; its gradient goes through the student only.

Deviations: AdamW instead of Adam with a ramped-up rate. The teacher's decay is warmed up as in the paper, then constant.
The teacher normalises by its own batches, as in the authors' code. No dropout; the views differ by their augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from methods.batch import Step
from methods.contracts import Context, Loss, Method
from methods.parts.losses import consistency_mse
from methods.parts.ramps import sigmoid_ramp
from methods.semisup.shared import EmaConfig, EmaLearner, RecipeConfig
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(EmaConfig, RecipeConfig):
    """Knobs."""

    mu: int = knob(3, Int(1, 7), legal=Int(1, 64), doc="unlabelled images per labelled one", source="Tarvainen 2017: 3")
    momentum: float = knob(
        0.99, Float(0.95, 0.999, log1m=True), legal=Float(0.0, 0.99999), doc="the teacher's decay per step",
        source="Tarvainen 2017: .99 to .999",
    )  # fmt: skip
    weight: float = knob(
        20.0, Float(1.0, 200.0, log=True), legal=Float(0.0, 1e4), doc="largest weight of the consistency cost",
        source="Tarvainen 2017: 100",
    )  # fmt: skip
    ramp: float = knob(
        0.3, Float(0.0, 0.8), legal=Float(0.0, 1.0), unit="share of the training", doc="length of the weight's sigmoid ramp",
        source="Laine 2016",
    )  # fmt: skip


class MeanTeacher(EmaLearner):
    """A student, ``model``, and its teacher, ``average``, which is the method's answer."""

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.augment = context.augment(config.augmentation, config.augmentation_strength)

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        one, two = (
            torch.cat([self.augment(batch.images, batch.stream.fork(view)) for batch in (labelled, pool)])
            for view in ("student", "teacher")
        )  # B+muB C H W each
        student = self.model(one)  # B+muB K
        teacher = self.average(two)  # B+muB K, no gradient
        supervised = F.cross_entropy(student[: len(labelled)], labelled.labels())
        unsupervised = consistency_mse(student.softmax(1), teacher.softmax(1)).mean()
        weight = c.weight * sigmoid_ramp(step.progress, c.ramp)
        parts = {
            "supervised": supervised.detach(),
            "consistency": unsupervised.detach(),
            "agreement": (student.detach().argmax(1) == teacher.argmax(1)).float().mean(),
        }
        return Loss(supervised + weight * unsupervised, parts)


METHOD = Method(
    name="mean_teacher",
    family="semisup",
    paper="Tarvainen & Valpola 2017, arXiv:1703.01780",
    summary="agree with the average of your own past weights",
    config=Config,
    learner=MeanTeacher,
    uses_labels=True,
)
