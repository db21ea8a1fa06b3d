"""Fine-tuning: a pretrained encoder and a classifier are trained on the labelled images.

Kornblith, Shlens & Le 2019, "Do better ImageNet models transfer better?", arXiv:1805.08974; from a linear probe's solution on:
Kumar et al. 2022, arXiv:2202.10054; smaller rates for earlier layers: Howard & Ruder 2018, arXiv:1801.06146, and per block by a
constant factor as in Clark et al. 2020, arXiv:2003.10555, and Bao et al. 2021, arXiv:2106.08254.

Deviations: AdamW instead of SGD; the probe is fitted in closed form, on embeddings of unit length; batch normalisation may keep
its pretrained statistics, which small batches of few images estimate badly.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.tuning import TuneConfig, Tuning, tuned_classifier
from methods.contracts import Context, Learner, Method
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    layer_decay: float = knob(
        0.8, Float(0.5, 1.0), legal=Float(0.0, 1.0), unit="of the next block's", doc="learning rate of every block",
        source="Clark 2020: .8; Bao 2021: .65",
    )  # fmt: skip


def learner(config: Config, context: Context) -> Learner:
    return Tuning(config, context, tuned_classifier(config, context, METHOD.name), config.layer_decay)


METHOD = Method(
    name="fine_tune",
    family="adapt",
    paper="Kornblith et al. 2019, arXiv:1805.08974; Kumar et al. 2022, arXiv:2202.10054",
    summary="a pretrained encoder is trained on, from a linear probe's solution",
    config=Config,
    learner=learner,
    uses_labels=True,
)
