"""Bag of words: predict which visual words of a teacher an image holds, from a disturbed view of it.

Gidaris, Bursuc, Komodakis, Perez & Cord 2020, "Learning representations by predicting bags of visual words", arXiv:2002.12247.
Stage one trains a teacher on rotation. Stage two clusters the teacher's local features into `words`, and a fresh student sees
a strongly augmented view and predicts the normalised histogram of words that the teacher finds in the weakly augmented image,
by cross-entropy through a cosine layer.

Deviations: AdamW instead of SGD; the simclr recipe as disturbance, without CutMix; one round, not repeated; features of the
last but one layer, where small images still have places to count; word assignments are hard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, Stage, TrainingError
from methods.parts.assignments import assignments
from methods.parts.decoders import map_channels
from methods.parts.encoders import Encoder
from methods.parts.heads import CosineHead
from methods.parts.labelling import Frozen
from methods.parts.losses import soft_cross_entropy
from methods.parts.vocabulary import Vocabulary, k_means, local_features
from methods.selfsup.rotation import Rotation
from methods.selfsup.shared import SelfConfig, beside
from search_spaces.domains import Float, Int, knob

SAMPLE = 1024
"""Images whose local features are clustered."""


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    batch_size: int = knob(
        128, Int(32, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="images per step", source="Gidaris 2020"
    )
    words: int = knob(
        256, Int(64, 1024, power_of_two=True), legal=Int(2, 16384), doc="size of the vocabulary", source="Gidaris 2020: 2048"
    )
    temperature: float = knob(
        0.1, Float(0.03, 1.0, log=True), legal=Float(1e-3, 1e2), doc="of the softmax over words", source="Gidaris 2020: learned"
    )
    teacher_share: float = knob(
        0.4, None, legal=Float(0.01, 0.99), unit="of the training", doc="length of the teacher's stage", source="by hand"
    )


class BagOfWords(Learner):
    """The frozen teacher with its vocabulary, and the student with a cosine layer over words."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        teacher = context.previous
        assert teacher is not None, "the teacher is trained in the stage before"
        self.teacher = Frozen(teacher.encoder())
        self.layer = teacher.encoder().layers[-2]
        channels = map_channels(teacher.encoder())[self.layer]
        self.vocabulary = Vocabulary(torch.zeros(config.words, channels))
        self.weak = context.augment("crop_flip", config.augmentation_strength)
        self.strong = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.head = CosineHead(self.backbone.dim, config.words, config.temperature)
        features = local_features(teacher.encoder(), self.layer, context.data.images, SAMPLE, context.world.device)
        if len(features) < config.words:
            raise TrainingError(f"bag_of_words.words must not exceed the places, {len(features)}, got {config.words}; lower it")
        # Every worker takes the first one's words: sums of floats may differ between devices.
        self.vocabulary.words.copy_(context.world.gather(k_means(features, config.words))[: config.words])

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        clean = self.weak(batch.images, batch.stream.fork("clean"))  # B C H W
        bag = self.vocabulary(self.seen_by_teacher(clean))  # B K
        disturbed = self.strong(batch.images, batch.stream.fork("disturbed"))  # B C H W
        logits = self.head(self.backbone(disturbed))  # B K
        total = soft_cross_entropy(logits, bag).mean()
        floor = torch.special.entr(bag).sum(1).mean()
        parts = {"divergence": total.detach() - floor, "words_in_use": (bag.mean(0) > 0).float().mean()}
        return Loss(total, parts | assignments(bag, step.world))

    def seen_by_teacher(self, images: Tensor) -> Tensor:
        """The teacher's local features [B, c, h, w]."""
        teacher = self.teacher.module
        assert isinstance(teacher, Encoder)
        return teacher.maps(images)[self.layer]

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        views = (
            self.weak(batch.images, batch.stream.fork("clean")),
            self.strong(batch.images, batch.stream.fork("disturbed")),
        )
        return {"original | teacher's view | student's view": beside(batch.images, *views)}


def stages(config: Config) -> tuple[Stage, ...]:
    return (
        Stage("teacher", config.teacher_share, Rotation),
        Stage("words", 1 - config.teacher_share, BagOfWords),
    )


METHOD = Method(
    name="bag_of_words",
    family="selfsup",
    paper="Gidaris et al. 2020, arXiv:2002.12247",
    summary="predict a teacher's visual words from a disturbed view",
    config=Config,
    stages=stages,
)
