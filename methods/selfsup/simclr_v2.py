"""SimCLR v2: pre-train without labels, fine-tune with few, distil into a student with everything.

Chen, Kornblith, Swersky, Norouzi & Hinton 2020, "Big self-supervised models are strong semi-supervised learners",
arXiv:2006.10029. Stage one is SimCLR with a head of three layers. Stage two fine-tunes the encoder with the head's first
`kept_layers` layers and a new linear classifier on the labelled images. Stage three trains a student on the teacher's
temperature-softened predictions for all images: -sum_y p_T(y | x; t) log p_S(y | x; t), with weight `distil_weight`, the rest
being cross-entropy on labels.

Deviations: AdamW instead of LARS; no memory of keys in stage one and no selective kernels; the student sees crops and flips, as
does the fine-tuning. A student of width 1 starts from the teacher's encoder, another from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, Stage
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import Frozen
from methods.parts.losses import soft_cross_entropy
from methods.selfsup import simclr
from methods.selfsup.shared import beside
from search_spaces.domains import Float, Int, knob

LAYER = 3
"""Modules that make a hidden layer of the head: linear, BatchNorm, ReLU."""


@dataclass(frozen=True)
class Config(simclr.Config):
    """Knobs; those of stage one are SimCLR's."""

    head_depth: int = knob(3, None, legal=Int(1, 3), doc="layers of the projection head", source="Chen 2020b: 3")
    pretrain_share: float = knob(
        0.6,
        Float(0.4, 0.8),
        legal=Float(0.05, 0.9),
        unit="of the training",
        doc="length of stage one",
        source="Chen 2020b: most",
    )
    kept_layers: int = knob(1, Int(0, 2), doc="layers of the head that fine-tuning keeps", source="Chen 2020b: 1")
    tune_lr: float = knob(
        4e-4, Float(3e-5, 3e-3, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of fine-tuning",
        source="Chen 2020b: a tenth of the pre-training's",
    )  # fmt: skip
    distil_temperature: float = knob(
        1.0, Float(0.1, 5.0, log=True), legal=Float(0.01, 100.0), doc="softens both predictions", source="Chen 2020b: .1 to 1"
    )
    distil_weight: float = knob(1.0, None, legal=Float(0.0, 1.0), doc="alpha, the rest is the labels'", source="Chen 2020b: 1")
    student_width: float = knob(
        1.0, Float(0.5, 1.0), legal=Float(0.1, 4.0), unit="of the encoder's", doc="width of the student", source="Chen 2020b"
    )

    def finetuning(self) -> Optimizer:
        """AdamW at the rate of fine-tuning."""
        return Optimizer("adamw", self.tune_lr * self.batch_size / 256, self.weight_decay)


class FineTune(Learner):
    """The pre-trained encoder, the kept layers of its head, and a classifier, on labelled images."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        pretrained = context.previous
        assert isinstance(pretrained, simclr.SimCLR), "stage one pre-trains"
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        assert isinstance(pretrained.head, nn.Sequential)
        kept = list(pretrained.head)[: LAYER * min(config.kept_layers, config.head_depth - 1)]
        width = pretrained.backbone.dim
        self.model = Classifier(pretrained.backbone, nn.Sequential(*kept, nn.Linear(width, context.classes)))

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        logits = self.model(self.augment(batch.images, batch.stream))  # B K
        right = (logits.detach().argmax(1) == batch.labels()).float().mean()
        return Loss(F.cross_entropy(logits, batch.labels()), {"train_accuracy": right})

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.finetuning()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.stream))}


class Distil(Learner):
    """The frozen teacher and its student, on all images."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        tuned = context.previous
        assert isinstance(tuned, FineTune), "stage two fine-tunes"
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.teacher = Frozen(tuned.model)
        student = context.new_encoder(config.student_width)
        if config.student_width == 1:
            student.load_state_dict(tuned.model.encoder.state_dict())
        self.student = Classifier(student, context.classes)

    def batch_spec(self) -> BatchSpec:
        size = self.config.batch_size
        return BatchSpec(pool=size, labelled=size if self.config.distil_weight < 1 else 0)

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        x = self.augment(batch.images, batch.stream)  # B C H W
        t = self.teacher(x).float() / c.distil_temperature  # B K, no gradient
        logits = self.student(x)  # B K
        distilled = soft_cross_entropy(logits / c.distil_temperature, t.softmax(1)).mean()
        parts = {
            "distilled": distilled.detach(),
            "agreement": (logits.detach().argmax(1) == t.argmax(1)).float().mean(),
        }
        if c.distil_weight == 1:
            return Loss(distilled, parts)
        labelled = step.from_labelled()
        supervised = F.cross_entropy(self.student(self.augment(labelled.images, labelled.stream)), labelled.labels())
        return Loss(c.distil_weight * distilled + (1 - c.distil_weight) * supervised, parts)

    def encoder(self) -> Encoder:
        return self.student.encoder

    def predictor(self) -> nn.Module:
        return self.student

    def optimizer(self) -> Optimizer:
        return self.config.finetuning() if self.config.student_width == 1 else self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.stream))}


def stages(config: Config) -> tuple[Stage, ...]:
    rest = 1 - config.pretrain_share
    return (
        Stage("pretrain", config.pretrain_share, simclr.SimCLR),
        Stage("finetune", 0.5 * rest, FineTune),
        Stage("distil", 0.5 * rest, Distil),
    )


METHOD = Method(
    name="simclr_v2",
    family="selfsup",
    paper="Chen et al. 2020, arXiv:2006.10029",
    summary="pre-train without labels, fine-tune with few, distil with everything",
    config=Config,
    stages=stages,
    uses_labels=True,
)
