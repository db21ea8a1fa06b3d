"""Co-training: two classifiers that see different parts of an image label the pool for each other.

Blum & Mitchell 1998, "Combining labeled and unlabeled data with co-training", COLT; the steps are S2's:
  1  L1 = L2 = the labelled images
  2  repeat until the unlabelled ones are used up:
  3      train f1 on the first views of L1, f2 on the second views of L2
  4      classify the unlabelled images with f1 and f2 separately
  5      add f1's k most confident to L2, f2's to L1, and take them out of the unlabelled
The prediction is the product of both, as in Blum & Mitchell. The encoder is both encoders side by side.

Deviations: the views of an image are its left and right half, or its luminance and its chrominance; what a view must not
see is filled with the data's mean. Rounds end the repetition where the pool is not used up before. k is a share of the
pool, divided over the classes as the labels are (Blum & Mitchell's p and n) unless switched off. Classifiers go on from the
weights of the round before. Labelled images and added ones weigh one half each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, PseudoLabels, Stage
from methods.parts.alignment import class_shares
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.labelling import label_pool
from methods.parts.pair import VIEWS, PairEncoder
from methods.semisup.shared import RecipeConfig
from methods.world import World
from search_spaces.domains import SWITCH, Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    mu: int = knob(2, Int(1, 7), legal=Int(1, 64), doc="images of the pool per labelled one", source="own choice")
    views: str = knob("halves", Choice(VIEWS), doc="how an image is split", source="S2: a feature split")
    k: float = knob(
        0.1, Float(0.02, 0.25), legal=Float(1e-4, 1.0), unit="share of the pool",
        doc="images added by each classifier in a round", source="S2: learning speed k",
    )  # fmt: skip
    rounds: int = knob(
        3, Int(1, 6), legal=Int(1, 100), doc="rounds of labelling for each other", source="S2: until U is used up"
    )
    balanced: bool = knob(True, SWITCH, doc="divide k over the classes as the labels are", source="Blum & Mitchell 1998")

    @property
    def split(self) -> str:
        """What each classifier sees, of ``methods.parts.pair``."""
        return self.views

    def plan(self) -> tuple[Stage, ...]:
        each = 1 / (self.rounds + 1)
        return (Stage("labels", each, CoTraining), *(Stage(f"round {r + 1}", each, CoTraining) for r in range(self.rounds)))


class Pair(nn.Module):
    """A linear classifier on each half of a pair of encoders."""

    def __init__(self, encoder: PairEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.first = nn.Linear(encoder.first.dim, classes)
        self.second = nn.Linear(encoder.second.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 2, K]: either classifier's logits."""
        one, two = self.encoder.both(images)
        return torch.stack([self.first(one), self.second(two)], dim=1).float()

    @torch.no_grad()
    def product(self) -> Classifier:
        """One classifier that multiplies the probabilities of both: softmax(log p1 + log p2) = softmax(logits1 + logits2)."""
        # The global random state stays as it is.
        head: nn.Linear = skip_init(nn.Linear, self.encoder.dim, self.first.out_features, device=self.first.weight.device)
        head.weight.copy_(torch.cat([self.first.weight, self.second.weight], dim=1))
        head.bias.copy_(self.first.bias + self.second.bias)
        return Classifier(self.encoder, head)


def most_confident(p: Tensor, free: Tensor, k: int, shares: Tensor | None) -> Tensor:
    """bool [N]: the k images to add.

    Args:
        p: [N, K], probabilities.
        free: bool [N], images that may be added.
        k: how many, at most.
        shares: [K], how k is divided over the predicted classes; None takes the most confident of any class.
    """
    best, label = p.max(dim=1)
    best = best.masked_fill(~free, -1.0)
    if shares is None:
        rank = torch.zeros_like(label).scatter_(
            0, best.argsort(descending=True, stable=True), torch.arange(len(p), device=p.device)
        )
        return (rank < k) & free
    chosen = torch.zeros_like(free)
    for c, quota in enumerate((shares * k).round().long().tolist()):
        own = torch.where(label == c, best, torch.full_like(best, -1.0))
        top = own.topk(min(quota, len(own)))
        chosen[top.indices[top.values >= 0]] = True
    return chosen


class CoTraining(Learner):
    """One round: grows both training sets (not in the first), then trains both classifiers."""

    sets: Tensor
    known: Tensor
    shares: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.images = config, context.data.images
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        known = torch.from_numpy(context.data.label.copy())  # N
        previous = context.previous
        self.grows = isinstance(previous, CoTraining)
        if isinstance(previous, CoTraining):
            self.model: Pair = previous.model
            sets = previous.sets.clone()
        else:
            data = context.data
            encoder = PairEncoder(context.new_encoder(), context.new_encoder(), data.mean, data.std, config.split)
            self.model = Pair(encoder, context.classes)
            sets = torch.stack([known, known])  # line 1
        self.register_buffer("known", known, persistent=False)  # N, the true labels, -1 where unlabelled
        self.register_buffer("sets", sets)  # 2 N: each classifier's training labels, -1 where it has none
        self.register_buffer("shares", class_shares(known, context.classes))  # K

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec() if self.grows else BatchSpec(labelled=self.config.batch_size)

    @torch.no_grad()
    def grow(self, world: World) -> None:
        """Lines 4 and 5."""
        p = label_pool(self.model, self.images, world).unbind(1)  # 2 of N K
        free = (self.sets < 0).all(0)  # N
        k = max(1, round(self.config.k * len(free)))
        shares = self.shares if self.config.balanced else None
        added = [most_confident(own, free, k, shares) for own in p]  # 2 of N
        self.sets[1] = torch.where(added[0], p[0].argmax(1), self.sets[1])  # f1 teaches f2
        self.sets[0] = torch.where(added[1], p[1].argmax(1), self.sets[0])  # f2 teaches f1

    def loss(self, step: Step) -> Loss:
        if self.grows and step.number == 0:
            self.grow(step.world)
        labelled = step.from_labelled()
        batches = [labelled, step.from_pool()] if self.grows else [labelled]
        images = torch.cat([self.augment(batch.images, batch.stream) for batch in batches])  # B+muB C H W
        b, total = len(labelled), images.new_zeros(())
        parts = {}
        for j, logits in enumerate(self.model(images).unbind(1)):  # line 3
            supervised = F.cross_entropy(logits[:b], labelled.labels())
            total = total + supervised
            parts[f"supervised_{j + 1}"] = supervised.detach()
            if self.grows:
                target = self.sets[j][step.from_pool().index]  # muB
                mask = (target >= 0).to(logits.dtype)
                each = F.cross_entropy(logits[b:], target.clamp_min(0), reduction="none") * mask
                added = each.sum() * step.world.size / step.world.sum(mask.sum()).clamp_min(1)
                total = total + added
                parts[f"added_{j + 1}"] = added.detach()
        return Loss(total, parts, self.given(step.from_pool().index) if self.grows else None)

    def given(self, index: Tensor) -> PseudoLabels:
        """What each classifier was given for images int64 [b] by the other, 2b rows; true labels are not given."""
        label = self.sets[:, index].flatten()
        given = (label >= 0) & (self.known[index] < 0).repeat(2)
        return PseudoLabels(index.repeat(2), label.clamp_min(0), given)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model.product()

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="co_training",
    family="semisup",
    paper="Blum & Mitchell 1998, COLT",
    summary="two classifiers on two parts of the image label the pool for each other",
    config=Config,
    stages=Config.plan,
    uses_labels=True,
)
