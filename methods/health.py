"""Signs of health from inside a training, the same for every method, told at the end of each epoch.

Most are computed here, by the loop and not by the methods: of the embeddings of a fixed sample of training images and of
what the loss makes of them, of every teacher (``parts.ema``), and of the pseudo-labels that a method reports. A few only the
method can know (its assignments); it gives them among its loss's parts, under a name of ``SIGNALS``.

Why projections too: an encoder that ends in batch normalisation and a ReLU keeps an ``embedding_sd`` of .2 and more while
the projection that the loss sees has collapsed (BYOL without its predictor on digits: .24 and .07; with it .29 and .7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.contracts import Learner, PseudoLabels
from methods.data.records import Images, IntArray
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder, shown_at
from methods.parts.modes import evaluating
from methods.world import World

SIGNALS: Mapping[str, str] = {
    "embedding_sd": "spread of unit-length embeddings, 0 in collapse, 1 at most",
    "effective_rank": "dimensions that the embeddings use",
    "projection_sd": "as embedding_sd, of what the loss compares",
    "projection_rank": "as effective_rank, of what the loss compares",
    "teacher_distance": "teacher's weights from the student's, relative",
    "assignment_entropy": "entropy of an image's assignment, 1 for undecided",
    "assignment_balance": "entropy of the mean assignment, 0 where one takes all",
    "mask_rate": "share of pseudo-labels that are used",
    "pseudo_label_balance": "entropy of the used ones' classes, 0 where one takes all",
    "pseudo_label_accuracy": "used ones that are right, on validation images",
}
"""Every signal: its name in records, rules and curves, and what it is."""

SAMPLE, LARGE_SAMPLE = 512, 64
"""Training images whose embeddings are looked at, and as many where the encoder enlarges them: 512 at 160 pixels took 25 s of a
core at every rung.
"""

_BATCH = 128


def sample(images: Images, encoder: Encoder | None = None) -> Tensor:
    """uint8 [n, C, H, W], n <= 512: evenly spaced images, so that every class of ordered data is among them.

    Args:
        images: of the training.
        encoder: that will embed them; of one that shows itself images at a size of its own, n <= 64.
    """
    most = SAMPLE if encoder is None or shown_at(encoder) is None else LARGE_SAMPLE
    index = torch.linspace(0, len(images) - 1, min(len(images), most)).round().long()
    return images.take(index)


def embedding_sd(z: Tensor) -> float:
    """sqrt(D) times the mean over dimensions of the standard deviation of z / |z|.

    Chen & He 2021, "Exploring simple siamese representation learning", arXiv:2011.10566, section 4.1: 1 for centred
    isotropic directions, 0 where all images have one direction. An encoder that ends in a ReLU lies below 1 when it is
    well, since its outputs share a mean: resnet_small between 0.3 and 0.8.

    Args:
        z: [n, D].
    """
    unit = F.normalize(z.float(), dim=1)
    return float(unit.std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of z, divided by their sum: from 1 to min(n, D).

    Roy & Vetterli 2007, "The effective rank", EUSIPCO; as RankMe (Garrido et al. 2023, arXiv:2210.02885) a measure of
    dimensional collapse. 1 where all embeddings are multiples of one, zero included.

    Args:
        z: [n, D], not centred. Not a number where an element of it is none.
    """
    if not torch.isfinite(z).all():
        return math.nan
    # On the CPU, since a decomposition this small is slower elsewhere.
    values = torch.linalg.svdvals(z.float().cpu())
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return math.exp(float(torch.special.entr(share).sum()))


@torch.no_grad()
def embedding_signals(encoder: Encoder, projector: nn.Module | None, images: Tensor, device: torch.device) -> dict[str, float]:
    """Spread and rank of the embeddings, and where there is a projector, of its projections. Leaves the modules as they were.

    Args:
        encoder, projector: seen in evaluation mode and full precision.
        images: uint8 [n, C, H, W].
        device: of the modules.
    """
    with evaluating(*(module for module in (encoder, projector) if module is not None)):
        z = torch.cat([encoder(part.to(device)).float() for part in images.split(_BATCH)])
        projected = None if projector is None else projector(z)
    signals = {"embedding_sd": embedding_sd(z), "effective_rank": effective_rank(z)}
    if projected is not None:
        signals |= {"projection_sd": embedding_sd(projected), "projection_rank": effective_rank(projected)}
    return signals


def teacher_signals(learner: nn.Module) -> dict[str, float]:
    """``teacher_distance``, the mean over the learner's teachers; nothing where it has none."""
    found = [float(part.distance()) for part in learner.modules() if isinstance(part, Ema)]
    return {"teacher_distance": sum(found) / len(found)} if found else {}


class PseudoLabelCount:
    """Counts an epoch's pseudo-labels, and checks those whose truth is known to the study and hidden from the method.

    The truth stands here and nowhere that a learner can reach. It is the validation part of the label budget: labels
    beyond the budget stay unknown to everyone, and those that the method knows would flatter it.

    Args:
        classes: K.
        truth: int64 [N], the labels to check against, -1 where there is none; None for none at all.
        world: the workers, whose counts are added up.
    """

    def __init__(self, classes: int, truth: IntArray | None, world: World) -> None:
        self.classes, self.world = classes, world
        self._truth = None if truth is None else torch.from_numpy(truth).to(world.device)
        self._counts: Tensor | None = None

    def restart(self) -> None:
        self._counts = None

    def add(self, given: PseudoLabels) -> None:
        """Counts a step's pseudo-labels of this worker's rows."""
        used = given.used > 0
        label = given.label[used]
        counts = torch.zeros(self.classes + 3, dtype=torch.int64, device=label.device)
        counts[: self.classes] = torch.bincount(label, minlength=self.classes)
        counts[-3] = len(used)
        if self._truth is not None:
            truth = self._truth[given.index[used]]
            counts[-2], counts[-1] = (truth >= 0).sum(), (truth == label).sum()
        self._counts = counts if self._counts is None else self._counts + counts

    def told(self) -> tuple[dict[str, float], tuple[int, ...]]:
        """The epoch's signals, and how many used pseudo-labels each class got; both empty where no method gave any.

        Every worker must ask. ``pseudo_label_balance`` is left out where none was used, and ``pseudo_label_accuracy`` where
        none of the used ones could be checked.
        """
        if self._counts is None:
            return {}, ()
        *histogram, total, checked, right = (int(n) for n in self.world.sum(self._counts).tolist())
        used = sum(histogram)
        signals = {"mask_rate": used / total}
        if used:
            entropy = sum(n / used * math.log(used / n) for n in histogram if n)
            signals["pseudo_label_balance"] = entropy / math.log(max(self.classes, 2))
        if checked:
            signals["pseudo_label_accuracy"] = right / checked
        return signals, tuple(histogram)


def model_signals(learner: Learner, images: Tensor, device: torch.device) -> dict[str, float]:
    """What the learner's weights tell: of its embeddings of ``images`` uint8 [n, C, H, W], and of its teachers."""
    return {**embedding_signals(learner.encoder(), learner.projector(), images, device), **teacher_signals(learner)}
