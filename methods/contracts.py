"""What a method is: a catalogue entry with one or more stages, each of which trains one learner, or a fit on frozen features.

Shape legend used in all methods: B batch, V views, C channels, H W height and width, D embedding, K classes (or queue),
T tasks, N ways, Q queries.

A method never logs, checkpoints, picks devices or evaluates itself; ``methods.training`` owns all of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.batch import Batch, BatchSpec, Episodes, Step
from methods.data.records import TrainData
from methods.encoder import BuildEncoder, Encoder, EncoderSpec
from methods.features import Features
from methods.parts.augment import Augment, augmentation
from methods.world import World
from search_spaces.domains import Choice, Float, Int, Knob, UserError, knob, knobs

Family = Literal["baseline", "selfsup", "semisup", "fewshot", "active", "transfer", "adapt"]


class TrainingError(UserError):
    """A method cannot be trained on this data with these settings."""


@dataclass(frozen=True)
class SharedConfig:
    """Knobs of every method trained by gradient descent. A method restates a field only to change its default or range."""

    lr: float = knob(
        1e-3, Float(1e-4, 1e-2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Loshchilov & Hutter 2019",
    )  # fmt: skip
    weight_decay: float = knob(
        1e-2, Float(1e-4, 0.3, log=True), legal=Float(0, 10), doc="decoupled weight decay", source="Loshchilov & Hutter 2019"
    )
    batch_size: int = knob(
        256, Int(64, 512, power_of_two=True), legal=Int(2, 65536), unit="images", doc="images per step and branch",
        source="Chen 2020",
    )  # fmt: skip
    augmentation_strength: float = knob(
        1.0, Float(0.0, 2.0), doc="0 = identity, 1 = the paper's recipe", source="one meaning across methods"
    )


VIEWS = Choice(("one", "averaged", "augmented"))


@dataclass(frozen=True)
class FeatureConfig:
    """Knobs of every method that is fitted on a frozen encoder's features."""

    views: str = knob(
        "averaged", VIEWS, doc="an image alone, the mean of its and its mirror image's embedding, or both as examples",
        source="Krizhevsky 2012: averaged",
    )  # fmt: skip


@dataclass(frozen=True)
class Optimizer:
    """How a learner wants to be optimised. The loop builds it, schedules it and leaves norms and biases undecayed.

    Attributes:
        kind: ``adamw`` or ``sgd``.
        lr: learning rate as it is used, already scaled to the batch.
        weight_decay: decoupled for adamw.
        warmup: share of the stage with linear warm-up.
        schedule: ``cosine`` to zero, or ``constant`` after the warm-up.
        betas: of adamw.
        clip: largest global gradient norm, or None.
        momentum: of sgd, in Nesterov's form; 0 for plain descent.
    """

    kind: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    momentum: float = 0.9


@dataclass(frozen=True, eq=False)
class RateGroup:
    """Parameters that share a learning rate.

    Attributes:
        factor: of the optimizer's rate, at every step.
        parameters: of the learner; those that take no gradient are passed over.
    """

    factor: float
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that a method gave to images of the pool in a step. A method reports them; the loop counts and checks them.

    Attributes:
        index: int64 [b], the images' positions in the study's training images.
        label: int64 [b].
        used: [b], above 0 where the method learnt from the label (where it was confident enough).
    """

    index: Tensor
    label: Tensor
    used: Tensor


@dataclass(frozen=True)
class Loss:
    """A step's loss and the parts worth a curve.

    Attributes:
        total: scalar with gradient; the mean over this worker's rows, so that the workers' mean is the global batch's.
        parts: detached scalars by name (loss terms, accuracy on the pretext task, the health signals that only the method
            can know, see ``methods.health``).
        pseudo_labels: of this worker's rows, where the method gives any.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    pseudo_labels: PseudoLabels | None = None


@dataclass(frozen=True)
class Context:
    """What a learner is built from.

    Attributes:
        data: training images and the labels a method may know.
        encoder: which encoder the study trains, and its starting weights.
        world: the workers; ``world.device`` is where the learner will live (the loop moves it there).
        build: what builds encoders.
        seed: of this training; parameters are already seeded when a learner is built.
        previous: the learner of the stage before, trained; None in the first stage.
        recipes: what makes augmentations of recipes; ``augmentation`` for images.
    """

    data: TrainData
    encoder: EncoderSpec
    world: World
    seed: int
    build: BuildEncoder
    previous: Learner | None = None
    recipes: Callable[..., Augment] = augmentation

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.data.images.shape

    @property
    def classes(self) -> int:
        return self.data.classes

    def new_encoder(self, width: float = 1.0) -> Encoder:
        """A fresh encoder with the study's starting weights; ``width`` scales its channels (a larger student).

        Starting weights fit no other width than 1: a wider or narrower encoder starts from none.
        """
        spec = self.encoder if width == 1 else replace(self.encoder, init="none")
        return self.build(spec, self.shape, self.data.mean, self.data.std, width=width)

    def augment(
        self, recipe: str, strength: float = 1.0, mask_ratio: float | None = None, paper: float | None = None
    ) -> Augment:
        """One of the recipes (weak, simclr, strong, crop_flip, strokes); mirrored only where that keeps the image's meaning."""
        return self.recipes(recipe, strength=strength, flip=self.data.flip, mask_ratio=mask_ratio, paper=paper)


class Learner(nn.Module, ABC):
    """One stage's model. Concrete learners are final: composed of shared parts, never overridden.

    A learner is built as ``LearnerClass(config, context)`` and keeps what it needs of both. Everything that training changes
    is a parameter or a buffer, so that ``state_dict`` is the whole state and stop-and-resume is exact.
    """

    @abstractmethod
    def batch_spec(self) -> BatchSpec:
        """Sizes of the global batch this learner wants in every step."""

    @abstractmethod
    def loss(self, step: Step) -> Loss:
        """The loss of one step on this worker's rows, read as the paper's algorithm."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder to be scored and exported (the teacher's, where the paper evaluates the teacher)."""

    @abstractmethod
    def optimizer(self) -> Optimizer:
        """How to optimise this learner's parameters."""

    def rate_groups(self) -> tuple[RateGroup, ...]:
        """Rates by layer: groups that hold each trained parameter once; none where all have the optimizer's rate.

        Their number and members depend on the network alone, so that a fork may go on with other factors.
        """
        return ()

    def predictor(self) -> nn.Module | None:
        """The method's own classifier, images [B, C, H, W] -> logits [B, K]; None where it has none."""
        return None

    def projector(self) -> nn.Module | None:
        """From the encoder's embeddings [B, D] to those that the loss compares [B, D']; None where it is the encoder's own.

        A collapse begins there: a normalised encoder under a collapsed projector may look well (see ``methods.health``).
        """
        return None

    def after_step(self, step: Step) -> None:
        """Runs after the optimizer's step, without gradient: teachers, queues, banks."""
        return

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Images worth looking at, by name: float [n, C, H, W] in [0, 1]. Rows of one picture lie side by side."""
        return {}


class EpisodicLearner(Learner):
    """A learner that adapts to a support set. ``query_logits`` serves training and evaluation alike."""

    @abstractmethod
    def query_logits(self, episodes: Episodes) -> Tensor:
        """float [t, N*Q, N]: logits of each task's queries after adapting to its support set. May need gradients inside."""


class MetricLearner(EpisodicLearner):
    """An episodic learner that only compares embeddings, so that evaluation can embed each image once.

    Its ``query_logits`` is fixed: embed support and query with the encoder, then ``compare``.
    """

    @abstractmethod
    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        """float [t, Q, N] logits from embeddings: support [t, S, D], labels int64 [t, S], query [t, Q, D]."""

    def query_logits(self, episodes: Episodes) -> Tensor:
        t, s = episodes.support.shape[:2]
        q = episodes.query.shape[1]
        both = torch.cat([episodes.support, episodes.query], dim=1).flatten(0, 1)
        z = self.encoder()(both).view(t, s + q, -1)
        return self.compare(z[:, :s], episodes.support_label, z[:, s:], episodes.shape.ways)


@dataclass(frozen=True)
class Stage:
    """A part of a method's training: its share of the epochs, and the learner it trains."""

    name: str
    share: float
    learner: Callable[[Any, Context], Learner]


@dataclass(frozen=True)
class Method:
    """A catalogue entry.

    Attributes:
        name: as in study files.
        family: folder and heading.
        paper: authors, year and arXiv number or venue.
        summary: one line.
        config: frozen dataclass whose fields are knobs.
        learner: the learner of a single-stage method; exclusive with ``stages``.
        stages: for several stages: from the config to the stages, whose shares sum to 1.
        fit: of a feature method, which trains no encoder and no epoch: from the config and a frozen encoder's features to the
            head, features [B, D] -> logits [B, K]; in place of a learner and of stages.
        frozen: whether learner or stages are trained on a frozen encoder's features in place of images, in one go; the config
            says for how many ``steps``.
        uses_labels: whether training reads labels (then validation labels must be kept apart); ``reads_labels`` asks.
        uses_captions: whether training reads captions, or class names where there are none: labels in other words.
        encoder: ``any``, or ``vit`` for methods that need patch tokens.
        min_epochs: the first rung at which the method may be judged.
    """

    name: str
    family: Family
    paper: str
    summary: str
    config: type
    learner: Callable[[Any, Context], Learner] | None = None
    stages: Callable[[Any], tuple[Stage, ...]] | None = None
    uses_labels: bool = False
    uses_captions: bool = False
    encoder: Literal["any", "vit"] = "any"
    min_epochs: int = 1
    fit: Callable[[Any, Features], nn.Module] | None = None
    frozen: bool = False

    RESERVED: ClassVar[tuple[str, ...]] = ("method",)

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.learner, self.stages, self.fit)) != 1:
            raise TypeError(f"method {self.name} declares one of learner, stages and fit, neither two nor none")

    @property
    def on_features(self) -> bool:
        """Whether it learns from a frozen encoder's features, in one go."""
        return self.fit is not None or self.frozen

    def plan(self, config: Any) -> tuple[Stage, ...]:
        """The stages of a training with this configuration; shares sum to 1."""
        if self.stages is not None:
            return self.stages(config)
        assert self.learner is not None, f"{self.name} is fitted on features and has no stages"
        return (Stage("train", 1.0, self.learner),)

    def reads_labels(self, data: TrainData) -> bool:
        """Whether training on this data learns from labels, be it through captions that tell them."""
        return self.uses_labels or (self.uses_captions and (data.tokens is None or data.caption_labels))

    def knobs(self) -> dict[str, Knob]:
        return knobs(self.config)
