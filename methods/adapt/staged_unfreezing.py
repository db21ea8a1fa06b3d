"""Staged unfreezing: the last block of a pretrained encoder is tuned first, then one block more after another joins it.

Howard & Ruder 2018, "Universal language model fine-tuning for text classification", arXiv:1801.06146: gradual unfreezing, with
discriminative rates (every layer at 1 / 2.6 of the rate of the next).

Deviations: the head begins at a linear probe's solution, so that the last block is tuned from the first step on; blocks join at
even intervals of `unfreezing` of the training, not one an epoch; the rate falls by a cosine, not linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from methods.adapt.tuning import TuneConfig, Tuning, tuned_classifier
from methods.contracts import Context, Learner, Method
from methods.parts.tuned import blocks
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    layer_decay: float = knob(
        0.7, Float(0.3, 1.0), legal=Float(0.0, 1.0), unit="of the next block's", doc="learning rate of every block",
        source="Howard 2018: 1 / 2.6",
    )  # fmt: skip
    unfreezing: float = knob(
        0.5, Float(0.1, 0.9), legal=Float(0.0, 1.0), unit="of the training", doc="time after which all blocks are tuned",
        source="Howard 2018: a layer an epoch",
    )  # fmt: skip


def held_at(progress: float, count: int, unfreezing: float) -> int:
    """How many of ``count`` blocks stay as they are at ``progress``: all but the last at first, none from ``unfreezing`` on."""
    if progress >= unfreezing:
        return 0
    return count - 1 - int(progress / unfreezing * (count - 1))


def learner(config: Config, context: Context) -> Learner:
    model = tuned_classifier(config, context, METHOD.name)
    held = partial(held_at, count=len(blocks(model.encoder)), unfreezing=config.unfreezing)
    return Tuning(config, context, model, config.layer_decay, held)


METHOD = Method(
    name="staged_unfreezing",
    family="adapt",
    paper="Howard & Ruder 2018, arXiv:1801.06146",
    summary="a pretrained encoder is tuned block by block, the last first",
    config=Config,
    learner=learner,
    uses_labels=True,
)
