"""Continued pretraining: a pretrained encoder first learns from the whole pool without labels, and is tuned on the labels then.

Gururangan et al. 2020, "Don't stop pretraining: adapt language models to domains and tasks", arXiv:2004.10964; for images: Reed
et al. 2022, "Self-supervised pretraining improves self-supervised pretraining", arXiv:2103.12718.

Deviations: the self-supervised row has its own defaults, but for the knobs that are restated here; the tuning is `fine_tune`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.adapt.tuning import TuneConfig, Tuning, tuned_classifier
from methods.contracts import Context, Learner, Method, Stage
from methods.selfsup import barlow_twins, byol, rotation, simclr, vicreg
from search_spaces.domains import Choice, Float, Int, build, knob

OBJECTIVES = {module.METHOD.name: module.METHOD for module in (simclr, byol, barlow_twins, vicreg, rotation)}
"""Self-supervised rows that train the study's encoder as it is, whichever it is, and need no more of the pool than a batch."""


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs; those of `TuneConfig` are the tuning's."""

    layer_decay: float = knob(
        0.8, Float(0.5, 1.0), legal=Float(0.0, 1.0), unit="of the next block's", doc="learning rate of every block",
        source="Clark 2020: .8; Bao 2021: .65",
    )  # fmt: skip
    objective: str = knob(
        "simclr", Choice(OBJECTIVES), doc="the self-supervised row that continues the pretraining", source="Reed 2022: MoCo v2"
    )
    pretrain_share: float = knob(
        0.5, Float(0.2, 0.8), legal=Float(0.05, 0.95), unit="of the training", doc="length of the pretraining",
        source="this project",
    )  # fmt: skip
    pretrain_lr: float = knob(
        5e-4, Float(5e-5, 5e-3, log=True), legal=Float(1e-8, 100), unit="per 256 images",
        doc="learning rate of AdamW in the pretraining", source="Reed 2022: a tenth of that from nothing",
    )  # fmt: skip
    pretrain_batch_size: int = knob(
        128, Int(64, 512, power_of_two=True), legal=Int(2, 65536), unit="images", doc="images per step of the pretraining",
        source="Chen 2020: 256 and more",
    )  # fmt: skip

    def plan(self) -> tuple[Stage, ...]:
        return Stage("pretrain", self.pretrain_share, pretrainer), Stage("tune", 1 - self.pretrain_share, learner)


def pretrainer(config: Config, context: Context) -> Learner:
    """The self-supervised row's learner, with its defaults but for rate and batch."""
    method = OBJECTIVES[config.objective]
    assert method.learner is not None, "those rows have one stage"
    own = build(method.config, {"lr": config.pretrain_lr, "batch_size": config.pretrain_batch_size}, method.name)
    return method.learner(own, context)


def learner(config: Config, context: Context) -> Learner:
    assert context.previous is not None, "pretraining comes first"
    model = tuned_classifier(config, context, METHOD.name, context.previous.encoder())
    return Tuning(config, context, model, config.layer_decay)


METHOD = Method(
    name="continued_pretraining",
    family="adapt",
    paper="Gururangan et al. 2020, arXiv:2004.10964; Reed et al. 2022, arXiv:2103.12718",
    summary="a pretrained encoder learns from the pool without labels, and is then tuned",
    config=Config,
    stages=Config.plan,
    uses_labels=True,
)
