"""Co-training on a frozen encoder's features, by the code of ``methods.semisup.co_training``.

Blum & Mitchell 1998, "Combining labeled and unlabeled data with co-training", COLT. That features are split by lot where no
natural split exists: Nigam & Ghani 2000, "Analyzing the effectiveness and applicability of co-training", CIKM.

Deviations: those of ``methods.semisup.co_training``; a row of features stands in an image's place, every other feature is one
view and those between are the other, the networks are linear layers on framed features, and augmentation is one of the
image's views by lot, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.shared import FrozenConfig
from methods.contracts import Method
from methods.parts.pair import CHANNELS
from methods.semisup import co_training


@dataclass(frozen=True)
class Config(FrozenConfig, co_training.Config):
    """Knobs."""

    @property
    def split(self) -> str:
        """What the two classifiers see: features have no left and right."""
        return CHANNELS


METHOD = Method(
    name="frozen_co_training",
    family="adapt",
    paper="Blum & Mitchell 1998, COLT",
    summary="two classifiers on halves of a frozen encoder's features label the pool for each other",
    config=Config,
    learner=co_training.METHOD.learner,
    stages=co_training.METHOD.stages,
    uses_labels=True,
    frozen=True,
)
