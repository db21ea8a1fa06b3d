"""Pseudo-label on a frozen encoder's features, by the code of ``methods.semisup.pseudo_label``.

Lee 2013, "Pseudo-label: the simple and efficient semi-supervised learning method for deep neural networks", ICML workshop.

Deviations: those of ``methods.semisup.pseudo_label``; a row of features stands in an image's place,
the network is one linear layer on framed features, and augmentation is one of the image's views by lot, and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.shared import FrozenConfig
from methods.contracts import Method
from methods.semisup import pseudo_label


@dataclass(frozen=True)
class Config(FrozenConfig, pseudo_label.Config):
    """Knobs."""


METHOD = Method(
    name="frozen_pseudo_label",
    family="adapt",
    paper="Lee 2013, ICML workshop",
    summary="confident guesses are labels, on a frozen encoder's features",
    config=Config,
    learner=pseudo_label.METHOD.learner,
    stages=pseudo_label.METHOD.stages,
    uses_labels=True,
    frozen=True,
)
