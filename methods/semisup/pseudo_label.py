"""Pseudo-label: the most probable class of an unlabelled image is taken for its label.

Lee 2013, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", ICML workshop.
Two forms. At once (the paper's): labels are guessed anew in every step, their weight ramped up. Staged (S2's plain recipe):
train on the labels, label the pool, add the confident images to the training set, go on with the larger set, and repeat.

Deviations: no dropout and no denoising pre-training. The paper uses every guess (threshold 0); here the threshold is a
knob. AdamW. In the staged form each round goes on from the weights of the round before, with a fresh optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels, Stage
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import label_pool
from methods.parts.masks import confident
from methods.parts.ramps import linear_ramp
from methods.semisup.shared import RecipeConfig
from search_spaces.domains import SWITCH, Float, Int, Variant, When, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    staged: bool = knob(False, SWITCH, doc="label the pool between stages instead of in every step", source="S2")
    threshold: float = knob(
        0.5, Float(0.0, 0.95), legal=Float(0.0, 1.0), doc="confidence from which a guess is a label", source="Lee 2013: 0",
        variants=(Variant(When("staged", True), 0.9, Float(0.5, 0.99)),),
    )  # fmt: skip
    weight: float = knob(
        1.0, Float(0.1, 5.0, log=True), legal=Float(0.0, 100), doc="largest weight of the pseudo-labels", source="Lee 2013: 3"
    )
    start: float = knob(
        0.15, Float(0.0, 0.5), legal=Float(0.0, 1.0), unit="share of the training", doc="when the weight's ramp begins",
        source="Lee 2013: T1 = 100 epochs", when=When("staged", False),
    )  # fmt: skip
    ramp: float = knob(
        0.5, Float(0.0, 0.8), legal=Float(0.0, 1.0), unit="share of the training", doc="length of the weight's linear ramp",
        source="Lee 2013: T2 = 600 epochs", when=When("staged", False),
    )  # fmt: skip
    rounds: int = knob(2, Int(1, 4), legal=Int(1, 50), doc="times the pool is labelled", source="S2", when=When("staged", True))

    def plan(self) -> tuple[Stage, ...]:
        if not self.staged:
            return (Stage("train", 1.0, PseudoLabel),)
        each = 1 / (self.rounds + 1)
        return (Stage("labels", each, FromLabels), *(Stage(f"round {r + 1}", each, Round) for r in range(self.rounds)))


def pseudo_loss(logits: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K] with labels int64 [B], zero where mask [B] is; mean over all rows."""
    return (F.cross_entropy(logits, label, reduction="none") * mask).mean()


class PseudoLabel(Learner):
    """A classifier that learns from its own guesses in every step."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W, muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, muB K
        label, mask = confident(logits_u.detach().softmax(1), c.threshold)  # muB, muB
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = pseudo_loss(logits_u, label, mask)
        weight = c.weight * linear_ramp(step.progress, c.ramp, c.start)
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        return Loss(supervised + weight * unsupervised, parts, PseudoLabels(pool.index, label, mask))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


class FromLabels(Learner):
    """The staged form's first stage: cross-entropy on the labels."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled()
        return Loss(F.cross_entropy(self.model(self.augment(batch.images, batch.stream)), batch.labels()))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


class Round(Learner):
    """The staged form's later stages: labels the pool once, then learns from labels and confident pseudo-labels alike."""

    pseudo: Tensor
    known: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        assert isinstance(context.previous, FromLabels | Round), "a round follows the labels or another round"
        self.config, self.images = config, context.data.images
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model: Classifier = context.previous.model
        self.register_buffer("known", torch.from_numpy(context.data.label.copy()))  # N, -1 where unlabelled
        self.register_buffer("pseudo", torch.full((len(context.data),), -1))  # N, -1 where not confident

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def label(self, step: Step) -> None:
        """Guesses for the whole pool; true labels where they are known."""
        label, mask = confident(label_pool(self.model, self.images, step.world), self.config.threshold)  # N, N
        guessed = torch.where(mask > 0, label, torch.full_like(label, -1))
        self.pseudo.copy_(torch.where(self.known >= 0, self.known, guessed))

    def loss(self, step: Step) -> Loss:
        if step.number == 0:
            self.label(step)
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream) for batch in (labelled, pool))  # B C H W, muB C H W
        logits_x, logits_u = self.model(torch.cat([x, u])).split([len(x), len(u)])  # B K, muB K
        label = self.pseudo[pool.index]  # muB
        mask = (label >= 0).to(logits_u.dtype)  # muB
        supervised = F.cross_entropy(logits_x, labelled.labels())
        unsupervised = pseudo_loss(logits_u, label.clamp_min(0), mask)
        parts = {"supervised": supervised.detach(), "unsupervised": unsupervised.detach()}
        guessed = mask * (self.known[pool.index] < 0)  # True labels are no pseudo-labels.
        return Loss(supervised + self.config.weight * unsupervised, parts, PseudoLabels(pool.index, label, guessed))

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="pseudo_label",
    family="semisup",
    paper="Lee 2013, ICML workshop",
    summary="the most probable class of an unlabelled image is its label",
    config=Config,
    stages=Config.plan,
    uses_labels=True,
)
