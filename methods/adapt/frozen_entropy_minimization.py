"""Entropy minimization on a frozen encoder's features, by the code of ``methods.semisup.entropy_minimization``.

Grandvalet & Bengio 2004, "Semi-supervised learning by entropy minimization", NeurIPS 17.

Deviations: those of ``methods.semisup.entropy_minimization``; a row of features stands in an image's place,
the network is one linear layer on framed features, and augmentation is one of the image's views by lot, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.shared import FrozenConfig
from methods.contracts import Method
from methods.semisup import entropy_minimization


@dataclass(frozen=True)
class Config(FrozenConfig, entropy_minimization.Config):
    """Knobs."""


METHOD = Method(
    name="frozen_entropy_minimization",
    family="adapt",
    paper="Grandvalet & Bengio 2004, NeurIPS 17",
    summary="cross-entropy on labels, low entropy on the pool, on a frozen encoder's features",
    config=Config,
    learner=entropy_minimization.METHOD.learner,
    stages=entropy_minimization.METHOD.stages,
    uses_labels=True,
    frozen=True,
)
