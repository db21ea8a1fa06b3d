"""BitFit: of a pretrained encoder only the biases are tuned, and the scales and shifts of its normalisation layers.

Ben Zaken, Goldberg & Ravfogel 2022, "BitFit: simple parameter-efficient fine-tuning for transformer-based masked
language-models", arXiv:2106.10199. What a convolutional network's batch normalisation can do alone: Frankle, Schwab & Morcos
2021, arXiv:2003.00152.

Deviations: scales are tuned too, since most convolutional networks have no biases outside of batch normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.tuning import TuneConfig, Tuning, tuned_classifier
from methods.contracts import Context, Learner, Method, TrainingError
from methods.parts.tuned import scales_or_shifts
from search_spaces.domains import Choice, Float, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    lr: float = knob(
        6e-2, Float(1e-3, 0.2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="cross-validation on CIFAR-10; Ben Zaken 2021: ten times that of fine-tuning",
    )  # fmt: skip
    batch_norm: str = knob(
        "frozen", Choice(("frozen", "trained")),
        doc="whether batch normalisation keeps its pretrained statistics; scales and shifts are tuned in any case",
        source="as fine_tune",
    )  # fmt: skip


def learner(config: Config, context: Context) -> Learner:
    model = tuned_classifier(config, context, METHOD.name)
    chosen = scales_or_shifts(model.encoder)
    if not chosen:
        raise TrainingError(f"{METHOD.name} needs an encoder with biases or normalisation layers, got none; use fine_tune")
    model.train_only(chosen)
    return Tuning(config, context, model)


METHOD = Method(
    name="bitfit",
    family="adapt",
    paper="Ben Zaken et al. 2022, arXiv:2106.10199; Frankle et al. 2021, arXiv:2003.00152",
    summary="a pretrained encoder's biases and normalisation scales are tuned",
    config=Config,
    learner=learner,
    uses_labels=True,
)
