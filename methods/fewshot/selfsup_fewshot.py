"""Few-shot learning boosted by self-supervision: the encoder solves a pretext task on the same images beside its own.

Gidaris, Bursuc, Komodakis, Perez & Cord 2019, https://arxiv.org/abs/1906.05186. ``learner`` is a prototypical network,
trained on episodes, or a cosine classifier of the base classes. ``auxiliary`` asks for the quarter turn or the neighbour.

Deviations from the paper:
- every image takes one drawn turn, in place of all four in one batch; patches are jittered in a 3 x 3 grid of the augmented
  image, and all eight neighbours are asked for;
- the pretext head is an MLP on the embedding; its pass leaves the encoder's running batch-normalisation statistics alone;
- the cosine classifier meets a new task by the class means of unit embeddings; augmentation, optimizer and episodes as in
  ``prototypical``.
Raises: UserError where images are not square (turns); TrainingError where patches would be too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods.batch import Batch, BatchSpec, RandomStream, Step
from methods.contracts import Context, Loss, Method, MetricLearner, Optimizer, TrainingError
from methods.data.views import RotatedImages
from methods.parts.auxiliary import Auxiliary, NeighbourTask, TurnTask
from methods.parts.distances import DISTANCES, class_means, similarity_logits
from methods.parts.encoders import Encoder
from methods.parts.episodes import EpisodeViews, MetricConfig, augmented_pictures, episode_loss, restated, training_shape
from methods.parts.heads import Classifier, CosineHead
from search_spaces.domains import Choice, Float, Int, Variant, When, knob

EPISODES = When("learner", "prototypical")
CLASSES = When("learner", "cosine")


@dataclass(frozen=True)
class Config(MetricConfig):
    learner: str = knob("prototypical", Choice(("prototypical", "cosine")), doc="the few-shot learner", source="Gidaris 2019")
    auxiliary: str = knob("rotation", Choice(("rotation", "relative_patch")), doc="the pretext task", source="Gidaris 2019")
    auxiliary_weight: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1000.0), doc="weight of the pretext loss", source="Gidaris 2019: 1"
    )
    ways: int = restated("ways", EPISODES)
    shots: int = restated("shots", EPISODES)
    queries: int = restated("queries", EPISODES)
    tasks: int = restated("tasks", EPISODES)
    rotations: bool = restated("rotations", EPISODES)
    composed: float = restated("composed", EPISODES)
    within_group: bool = restated("within_group", EPISODES)
    distance: str = knob(
        "euclidean", Choice(DISTANCES), doc="what prototypes are compared by", when=EPISODES, source="Snell 2017"
    )
    batch_size: int = knob(
        64, Int(16, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="labelled images per step", when=CLASSES,
        source="Gidaris 2019: 64",
    )  # fmt: skip
    temperature: float = knob(
        8.0, Float(0.5, 200.0, log=True), legal=Float(1e-4, 1e5), doc="divides the similarities", source="Snell 2017: 1",
        variants=(
            Variant(When("distance", "cosine"), 0.1, Float(0.01, 1.0, log=True)),
            Variant(CLASSES, 0.1, Float(0.02, 0.5, log=True)),
        ),
    )  # fmt: skip


class SelfsupFewshot(MetricLearner):
    """The few-shot learner, and the pretext task on the same encoder."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        if config.auxiliary == "rotation" and isinstance(context.data.images, RotatedImages):
            raise TrainingError(
                "selfsup_fewshot.auxiliary rotation needs images as they came, but few_shot.rotations has turned them;"
                " take relative_patch, or the knob selfsup_fewshot.rotations in place of the setting"
            )
        self.config = config
        self.f = config.new_encoder(context)
        self.auxiliary: Auxiliary = (
            TurnTask(self.f)
            if config.auxiliary == "rotation"
            else NeighbourTask(self.f, context.shape, "selfsup_fewshot.auxiliary relative_patch")
        )
        if config.learner == "prototypical":
            self.shape = training_shape(config, context)
            self.views = EpisodeViews(config, context)
        else:
            self.augment = config.augment(context)
            self.head = CosineHead(self.f.dim, context.classes, config.temperature)

    def batch_spec(self) -> BatchSpec:
        if self.config.learner == "prototypical":
            return BatchSpec(episodes=self.shape)
        return BatchSpec(labelled=self.config.batch_size)

    def loss(self, step: Step) -> Loss:
        few_shot, images, stream = self._episodes(step) if self.config.learner == "prototypical" else self._classes(step)
        pretext, right = self.auxiliary(self.f, images, stream)
        total = few_shot.total + self.config.auxiliary_weight * pretext
        return Loss(total, {**few_shot.parts, "pretext_loss": pretext.detach(), "pretext_accuracy": right})

    def _episodes(self, step: Step) -> tuple[Loss, Tensor, RandomStream]:
        drawn = step.from_episodes()
        episodes = self.views(drawn)
        # Of a class that was turned at random nothing tells by how much it is turned now.
        seen = self.views.augmented(drawn) if self.config.rotations and self.config.auxiliary == "rotation" else episodes
        images = torch.cat([seen.support, seen.query], dim=1)  # [t, n, C, H, W]
        stream = drawn.stream.fork("auxiliary").per(images.shape[1])
        return episode_loss(self.query_logits(episodes), episodes.query_label), images.flatten(0, 1), stream

    def _classes(self, step: Step) -> tuple[Loss, Tensor, RandomStream]:
        batch = step.from_labelled()
        images = self.augment(batch.images, batch.stream)  # [b, C, H, W]
        logits = self.head(self.f(images))  # [b, classes]
        right = (logits.detach().argmax(dim=1) == batch.labels()).float().mean()
        loss = Loss(cross_entropy(logits, batch.labels()), {"accuracy": right})
        return loss, images, batch.stream.fork("auxiliary")

    def compare(self, support: Tensor, support_label: Tensor, query: Tensor, ways: int) -> Tensor:
        c = self.config
        if c.learner == "prototypical":
            return similarity_logits(query, class_means(support, support_label, ways), c.distance, c.temperature)
        means = class_means(normalize(support.float(), dim=2), support_label, ways)  # [t, N, D]
        return similarity_logits(query, means, "cosine", c.temperature)  # [t, Q, N]

    def encoder(self) -> Encoder:
        return self.f

    def predictor(self) -> nn.Module | None:
        return Classifier(self.f, self.head) if self.config.learner == "cosine" else None

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.views.pictures(batch) if self.config.learner == "prototypical" else augmented_pictures(self.augment, batch)


METHOD = Method(
    name="selfsup_fewshot",
    family="fewshot",
    paper="Gidaris, Bursuc, Komodakis, Perez & Cord 2019, arXiv:1906.05186",
    summary="a few-shot learner that also tells rotations or neighbouring patches",
    config=Config,
    learner=SelfsupFewshot,
    uses_labels=True,
)
