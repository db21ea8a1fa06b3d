"""Linear probe: multinomial logistic regression on a frozen encoder's features.

Alain & Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644; as the first thing
to try with a pretrained encoder: Kornblith, Shlens & Le 2019, "Do better ImageNet models transfer better?",
arXiv:1805.08974.

Deviations: features are framed by the moments of the whole pool, unlabelled images included, and by default have unit length,
without intercept: with 250 labels that is worth more than the choice of the method. The penalty is a knob of the search, by
validation, in place of an inner cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from methods.adapt.shared import Frame, ProbeConfig, fitted_layer, head_of, probabilities
from methods.contracts import Method
from methods.features import Features


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Knobs."""


def fit(config: Config, features: Features) -> nn.Module:
    """The probe, features [B, D] -> logits [B, K]."""
    x, label = features.labelled()  # n D, n
    frame = Frame(features, config.standardise)
    layer = fitted_layer(frame(x), probabilities(label, features.classes), config)
    return head_of(frame, layer)


METHOD = Method(
    name="linear_probe",
    family="adapt",
    paper="Kornblith et al. 2019, arXiv:1805.08974",
    summary="logistic regression on a frozen encoder's features",
    config=Config,
    fit=fit,
    uses_labels=True,
)
