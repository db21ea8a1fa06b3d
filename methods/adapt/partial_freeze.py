"""Partial freezing: the first k of a pretrained encoder's n blocks stay as they are, and the others are tuned.

Yosinski, Clune, Bengio & Lipson 2014, "How transferable are features in deep neural networks?", arXiv:1411.1792: the accuracy
over k tells how general each layer is. Frozen blocks pass images on without gradient, so a step costs less the larger k is.

Deviations: the last block is tuned in any case; the layers behind k begin from the pretrained weights, not from random ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.tuning import TuneConfig, Tuning, tuned_classifier
from methods.contracts import Context, Learner, Method
from methods.parts.tuned import blocks
from search_spaces.domains import Int, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    frozen_blocks: int = knob(
        5, Int(1, 8), legal=Int(0, 1000), unit="blocks", doc="k, the first that stay; all but the last where there are fewer",
        source="Yosinski 2014: 1 to 7 of 8",
    )  # fmt: skip


def learner(config: Config, context: Context) -> Learner:
    model = tuned_classifier(config, context, METHOD.name)
    model.hold(min(config.frozen_blocks, len(blocks(model.encoder)) - 1))
    return Tuning(config, context, model)


METHOD = Method(
    name="partial_freeze",
    family="adapt",
    paper="Yosinski et al. 2014, arXiv:1411.1792",
    summary="the first blocks of a pretrained encoder stay, the others are tuned",
    config=Config,
    learner=learner,
    uses_labels=True,
)
