"""LoRA: each weight of a pretrained encoder gets an update of low rank, and only the updates are tuned.

Hu et al. 2021, "LoRA: low-rank adaptation of large language models", arXiv:2106.09685: W = W0 + alpha / r B A, B zero at first.
Convolutions as in LoCon: Yeh et al. 2023, arXiv:2309.14859.

Deviations: every linear, convolution and attention layer is updated, depthwise convolutions too, instead of queries and values
alone; no dropout before A. Updates are added to the weights in each step, which for convolutions costs less than a second path,
and stay merged: the encoder that is scored and exported is a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from methods.adapt.tuning import TuneConfig, augmented, tuned_classifier, tuned_loss, warm_start
from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, RateGroup, TrainingError
from methods.encoder import Encoder
from methods.parts.low_rank import LowRank
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(TuneConfig):
    """Knobs."""

    lr: float = knob(
        2e-2, Float(1e-3, 0.2, log=True), legal=Float(1e-8, 100), unit="per 256 images", doc="learning rate of AdamW",
        source="Hu 2021: ten times that of fine-tuning",
    )  # fmt: skip
    rank: int = knob(8, Int(1, 64, log=True), legal=Int(1, 10_000), doc="r, of each update", source="Hu 2021: 1 to 64")
    alpha: float = knob(
        8.0, Float(1.0, 64.0, log=True), legal=Float(1e-3, 1e4), doc="over r what updates are multiplied by",
        source="Hu 2021: the first r that is tried",
    )  # fmt: skip


class Lora(Learner):
    """The encoder with its updates, and a classifier."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.data = config, context.data
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = tuned_classifier(config, context, METHOD.name)
        norms = [layer for layer in self.model.encoder.modules() if isinstance(layer, _BatchNorm)]
        trained = config.batch_norm == "trained"
        self.model.train_only([p for layer in norms for p in layer.parameters()] if trained else [])
        self.updates = LowRank(self.model.encoder, config.rank, config.alpha)
        if not self.updates.names:
            raise TrainingError(
                f"{METHOD.name} needs an encoder with torch's linear or convolution layers, got none; use fine_tune"
            )

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        if step.number == 0:
            warm_start(self.model, self.data, step.world)
        weights = {f"encoder.{name}": weight for name, weight in self.updates.weights().items()}  # W0 + alpha / r B A
        return tuned_loss(lambda x: functional_call(self.model, weights, (x,)), self.augment, step.from_labelled())

    def after_step(self, step: Step) -> None:
        self.updates.merge(self.model.encoder)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def rate_groups(self) -> tuple[RateGroup, ...]:
        tuned = (*self.updates.parameters(), *self.model.encoder.parameters())
        return RateGroup(1.0, tuned), RateGroup(self.config.head_rate, tuple(self.model.head.parameters()))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return augmented(self.augment, batch)


METHOD = Method(
    name="lora",
    family="adapt",
    paper="Hu et al. 2021, arXiv:2106.09685; Yeh et al. 2023, arXiv:2309.14859",
    summary="low-rank updates of a pretrained encoder's weights are tuned",
    config=Config,
    learner=Lora,
    uses_labels=True,
)
