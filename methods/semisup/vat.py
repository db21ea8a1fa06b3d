"""Virtual adversarial training: the prediction must not change under the worst small perturbation.

Miyato et al. 2017, "Virtual adversarial training: a regularization method for supervised and semi-supervised learning",
arXiv:1704.03976.
The perturbation of length eps that changes the prediction most is found by power iteration; the loss is the KL divergence
to the prediction there, over labelled and unlabelled images alike, with an optional entropy term (the paper's VAT+EntMin).

Deviations: AdamW instead of Adam with a late linear decay. Lengths are measured in images standardised per channel, and
count for a 3 x 32 x 32 image: eps is multiplied by sqrt(C H W / 3072), so that one range serves all sizes. The finite
difference xi is large for lack of the paper's double precision. All passes run in float32, in which alone a small
difference of predictions has a meaning. BatchNorm's running statistics follow the clean pass only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.adversarial import clean_and_worst, perturbation_unit
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.losses import entropy, kl
from methods.semisup.shared import RecipeConfig
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    eps: float = knob(
        4.0, Float(0.5, 10.0, log=True), legal=Float(0.0, 1e3), unit="standard deviations, 3x32x32 image",
        doc="length of the perturbation", source="Miyato 2017: 10 on whitened CIFAR-10",
    )  # fmt: skip
    xi: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(1e-6, 100), unit="as eps", doc="length of the finite difference",
        source="Miyato 2017: 1e-6",
    )  # fmt: skip
    iterations: int = knob(1, Int(1, 3), legal=Int(0, 50), doc="power iterations", source="Miyato 2017: 1")
    weight: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1e3), doc="weight of the divergence", source="Miyato 2017: 1"
    )
    entropy_weight: float = knob(
        0.0,
        Float(0.0, 1.0),
        legal=Float(0.0, 100),
        doc="weight of the unlabelled images' entropy",
        source="Miyato 2017: 0 or 1",
    )


class VAT(Learner):
    """A classifier that is smooth around every image."""

    scale: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)
        self.register_buffer("scale", perturbation_unit(context.shape, context.data.std))  # C 1 1

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream.fork("views")) for batch in (labelled, pool))  # B C H W, muB C H W
        stream = labelled.stream.fork("direction"), pool.stream.fork("direction")
        images = torch.cat([x, u])  # B+muB C H W
        logits, worst = clean_and_worst(self.model, images, self.scale, c.eps, c.xi, c.iterations, stream)  # B+muB K each
        supervised = F.cross_entropy(logits[: len(x)], labelled.labels())
        smoothness = kl(logits.detach(), worst).mean()
        unsure = entropy(logits[len(x) :]).mean()
        parts = {"supervised": supervised.detach(), "divergence": smoothness.detach(), "entropy": unsure.detach()}
        return Loss(supervised + c.weight * smoothness + c.entropy_weight * unsure, parts)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="vat",
    family="semisup",
    paper="Miyato et al. 2017, arXiv:1704.03976",
    summary="the prediction stays under the worst small perturbation",
    config=Config,
    learner=VAT,
    uses_labels=True,
)
