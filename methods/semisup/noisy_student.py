"""Noisy student: a teacher without noise labels the pool, a noised and perhaps larger student learns from it, and again.

Xie et al. 2019, "Self-training with noisy student improves ImageNet classification", arXiv:1911.04252.
Stages: the teacher on the labels, then one stage a generation. Each student is the next one's teacher.

Deviations: noise is the strong augmentation and dropout before the classifier; stochastic depth, which small encoders have
no room for, is left out. Pseudo-labels less confident than a threshold are not used, as in the paper; they are not
balanced over the classes. A student of another width than the study's encoder cannot take the study's starting weights
and starts from scratch. AdamW. Until half of its stage is over a student is worse than its teacher by construction, so
until then the teacher remains the method's answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels, Stage
from methods.parts.dropout import dropout
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import Frozen, label_pool
from methods.parts.masks import confident
from methods.semisup.shared import SemiConfig, classifier
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SemiConfig):
    """Knobs."""

    mu: int = knob(3, Int(1, 7), legal=Int(1, 64), doc="unlabelled images per labelled one", source="Xie 2019: 3 (14 for L2)")
    generations: int = knob(2, Int(1, 4), legal=Int(1, 20), doc="students trained one after another", source="Xie 2019: 3")
    teacher_share: float = knob(
        0.25,
        Float(0.1, 0.5),
        legal=Float(0.01, 0.99),
        unit="share of the training",
        doc="length of the first teacher's stage",
        source="own choice: the teacher sees few images",
    )
    targets: str = knob(
        "soft", Choice(("soft", "hard")), doc="pseudo-labels: distributions or classes", source="Xie 2019: soft"
    )
    threshold: float = knob(
        0.3, Float(0.0, 0.9), legal=Float(0.0, 1.0), doc="confidence below which a pseudo-label is not used",
        source="Xie 2019: .3",
    )  # fmt: skip
    dropout: float = knob(
        0.3, Float(0.0, 0.7), legal=Float(0.0, 0.95), doc="share of the embedding dropped", source="Xie 2019: .5"
    )
    student_width: float = knob(
        1.0, Choice((1.0, 1.5, 2.0)), legal=Float(0.25, 8.0), unit="times the study's encoder", doc="channels of the students",
        source="Xie 2019: equal or larger",
    )  # fmt: skip

    def plan(self) -> tuple[Stage, ...]:
        each = (1 - self.teacher_share) / self.generations
        students = (Stage(f"student {g + 1}", each, Student) for g in range(self.generations))
        return (Stage("teacher", self.teacher_share, Teacher), *students)


class Teacher(Learner):
    """The first teacher: noised cross-entropy on the labels."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.noise = context.augment("strong", config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        x = self.noise(batch.images, batch.stream.fork("noise"))  # B C H W
        z = dropout(self.model.encoder(x), self.config.dropout, batch.stream.fork("dropout"))  # B D
        logits = self.model.head(z).float()  # B K
        return Loss(F.cross_entropy(logits, batch.labels()))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


class Student(Learner):
    """One generation: learns from the labels and from what the stage before says about the pool."""

    progress: Tensor
    pseudo: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        assert isinstance(context.previous, Teacher | Student), "a student follows a teacher"
        self.config, self.images = config, context.data.images
        self.noise = context.augment("strong", config.augmentation_strength)
        self.model = Classifier(context.new_encoder(config.student_width), context.classes)
        self.teacher = Frozen(context.previous.model)
        self.register_buffer("pseudo", torch.zeros(len(context.data), context.classes))
        self.register_buffer("progress", torch.zeros(()))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        if step.number == 0:
            self.pseudo.copy_(label_pool(self.teacher, self.images, step.world))
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.noise(batch.images, batch.stream.fork("noise")) for batch in (labelled, pool))  # B C H W, muB C H W
        z = self.model.encoder(torch.cat([x, u]))  # B+muB D
        z = dropout(z, c.dropout, labelled.stream.fork("dropout"), pool.stream.fork("dropout"))  # B+muB D
        logits = self.model.head(z).float()  # B+muB K
        logits_x, logits_u = logits.split([len(x), len(u)])  # B K, muB K
        q = self.pseudo[pool.index]  # muB K
        label, mask = confident(q, c.threshold)  # muB, muB
        target = label if c.targets == "hard" else q
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = (F.cross_entropy(logits_u, target, reduction="none") * mask).mean()
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        return Loss(supervised + unsupervised, parts, PseudoLabels(pool.index, label, mask))

    def after_step(self, step: Step) -> None:
        self.progress.fill_(step.progress)

    def answer(self) -> Classifier:
        """The student once half of its stage is over, until then its teacher."""
        return self.model if float(self.progress) >= 0.5 else classifier(self.teacher)

    def encoder(self) -> Encoder:
        return self.answer().encoder

    def predictor(self) -> nn.Module:
        return self.answer()

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="noisy_student",
    family="semisup",
    paper="Xie et al. 2019, arXiv:1911.04252",
    summary="a noised student learns the pool's labels from an unnoised teacher, and becomes the teacher",
    config=Config,
    stages=Config.plan,
    uses_labels=True,
)
