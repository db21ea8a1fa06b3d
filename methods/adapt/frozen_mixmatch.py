"""MixMatch on a frozen encoder's features, by the code of ``methods.semisup.mixmatch``.

Berthelot et al. 2019, "MixMatch: a holistic approach to semi-supervised learning", arXiv:1905.02249.

Deviations: those of ``methods.semisup.mixmatch``; a row of features stands in an image's place,
the network is one linear layer on framed features, and augmentation is one of the image's views by lot, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.shared import FrozenConfig
from methods.contracts import Method
from methods.semisup import mixmatch


@dataclass(frozen=True)
class Config(FrozenConfig, mixmatch.Config):
    """Knobs."""


METHOD = Method(
    name="frozen_mixmatch",
    family="adapt",
    paper="Berthelot et al. 2019, arXiv:1905.02249",
    summary="guesses averaged and sharpened, then all is mixed, on a frozen encoder's features",
    config=Config,
    learner=mixmatch.METHOD.learner,
    stages=mixmatch.METHOD.stages,
    uses_labels=True,
    frozen=True,
)
