"""S4L: the supervised loss beside a self-supervised one on all images, rotation or exemplar.

Zhai et al. 2019, "S4L: self-supervised semi-supervised learning", arXiv:1905.03670.
Rotation: labelled and unlabelled images enter in all four turns; one linear layer tells the turn, and (a knob, as in the
paper) the class is learned in all four turns too. Exemplar: views of one image lie closer together than views of others,
by a batch-hard triplet loss with a soft margin. The full mix adds VAT and entropy minimization to either.

Deviations: AdamW. Of the paper's "mix of all models" only its first step is here: no pseudo-labelling and fine-tuning
afterwards. Exemplar views are simclr views, two instead of eight. The paper's soft margin is ours for exemplar; embeddings
are normalised.
Raises: UserError where images are not square and the auxiliary task is rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.adversarial import clean_and_worst, perturbation_unit
from methods.parts.augment import rotate_quarter
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.losses import entropy, kl
from methods.semisup.shared import RecipeConfig
from methods.world import World
from search_spaces.domains import SWITCH, Choice, Float, Int, When, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    auxiliary: str = knob("rotation", Choice(("rotation", "exemplar")), doc="self-supervised task", source="Zhai 2019")
    weight: float = knob(
        1.0, Float(0.1, 10.0, log=True), legal=Float(0.0, 1e3), doc="weight of the self-supervised loss", source="Zhai 2019: 1"
    )
    turned_labels: bool = knob(
        True, SWITCH, doc="learn the class in all four turns", source="Zhai 2019: on", when=When("auxiliary", "rotation")
    )
    views: int = knob(
        2, Int(2, 4), legal=Int(2, 16), doc="views of an image", source="Zhai 2019: 8", when=When("auxiliary", "exemplar")
    )
    full_mix: bool = knob(False, SWITCH, doc="add VAT and entropy minimization", source="Zhai 2019")
    eps: float = knob(
        4.0, Float(0.5, 10.0, log=True), legal=Float(0.0, 1e3), unit="standard deviations, 3x32x32 image",
        doc="length of VAT's perturbation", source="as vat", when=When("full_mix", True),
    )  # fmt: skip
    vat_weight: float = knob(
        0.3, Float(0.05, 3.0, log=True), legal=Float(0.0, 1e3), doc="weight of VAT", source="Zhai 2019: .3",
        when=When("full_mix", True),
    )  # fmt: skip
    entropy_weight: float = knob(
        0.3, Float(0.05, 3.0, log=True), legal=Float(0.0, 100), doc="weight of the entropy", source="Zhai 2019: .3",
        when=When("full_mix", True),
    )  # fmt: skip


def batch_hard_triplet(z: Tensor, ids: Tensor, world: World) -> Tensor:
    """Mean over rows of softplus(distance to the farthest view of the same image - to the nearest of another).

    Args:
        z: [b, D], normalised embeddings, this worker's rows; every image has at least two.
        ids: int64 [b], which image each row is a view of.
        world: the workers; positives and negatives come from all of them.
    Raises:
        nothing: a batch of one single image has no negatives and costs nothing.
    """
    everything, all_ids = world.gather(z), world.gather(ids)  # B D, B
    distance = (2 - 2 * (z.unsqueeze(1) * everything.unsqueeze(0)).sum(2)).clamp_min(1e-6).sqrt()  # b B
    same = ids.unsqueeze(1) == all_ids.unsqueeze(0)  # b B
    farthest = distance.masked_fill(~same, 0.0).amax(1)  # b
    nearest = distance.masked_fill(same, 1e4).amin(1)  # b
    return F.softplus(farthest - nearest).mean()


class S4L(Learner):
    """A classifier with a head for the turn."""

    scale: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        rotation = config.auxiliary == "rotation"
        # The knob scales the strong branch where there is one, and that is exemplar's views.
        self.augment = context.augment(config.augmentation, config.augmentation_strength if rotation else 1.0)
        self.views = context.augment("simclr", config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)
        self.turn_head = nn.Linear(self.model.encoder.dim, 4) if rotation else None
        self.register_buffer("scale", perturbation_unit(context.shape, context.data.std))  # C 1 1

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def rotation(self, x: Tensor, u: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Classification and rotation loss from one pass of all images in all turns. x [B, C, H, W], u [muB, C, H, W]."""
        assert self.turn_head is not None
        images = torch.cat([x, u])
        turns = torch.arange(4, device=x.device).repeat_interleave(len(images))  # 4(B+muB)
        z = self.model.encoder(rotate_quarter(images.repeat(4, 1, 1, 1), turns))  # 4(B+muB) D
        auxiliary = F.cross_entropy(self.turn_head(z).float(), turns)
        used = 4 if self.config.turned_labels else 1
        logits = self.model.head(z.unflatten(0, (4, -1))[:used, : len(x)].flatten(0, 1)).float()  # 4B K or B K
        return F.cross_entropy(logits, label.repeat(used)), auxiliary

    def exemplar(self, x: Tensor, pool: Batch, label: Tensor, world: World) -> tuple[Tensor, Tensor]:
        """Classification loss of x [B, C, H, W], and the triplet loss of the pool's views."""
        n = self.config.views
        views = [self.views(pool.images, pool.stream.fork(f"exemplar {v}")) for v in range(n)]
        z = self.model.encoder(torch.cat([x, *views]))  # B+VmuB D
        supervised = F.cross_entropy(self.model.head(z[: len(x)]).float(), label)
        embedded = F.normalize(z[len(x) :].float(), dim=1)  # VmuB D
        return supervised, batch_hard_triplet(embedded, pool.index.repeat(n), world)

    def mixed(self, x: Tensor, u: Tensor, labelled: Batch, pool: Batch) -> tuple[Tensor, Tensor]:
        """VAT's divergence over all images, and the entropy of the unlabelled ones."""
        stream = labelled.stream.fork("direction"), pool.stream.fork("direction")
        logits, worst = clean_and_worst(self.model, torch.cat([x, u]), self.scale, self.config.eps, 1.0, 1, stream)  # B+muB K
        return kl(logits.detach(), worst).mean(), entropy(logits[len(x) :]).mean()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream.fork("views")) for batch in (labelled, pool))  # B C H W, muB C H W
        if c.auxiliary == "rotation":
            supervised, auxiliary = self.rotation(x, u, labelled.labels())
        else:
            supervised, auxiliary = self.exemplar(x, pool, labelled.labels(), step.world)
        total = supervised + c.weight * auxiliary
        parts = {"supervised": supervised.detach(), c.auxiliary: auxiliary.detach()}
        if c.full_mix:
            smoothness, unsure = self.mixed(x, u, labelled, pool)
            total = total + c.vat_weight * smoothness + c.entropy_weight * unsure
            parts |= {"divergence": smoothness.detach(), "entropy": unsure.detach()}
        return Loss(total, parts)

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="s4l",
    family="semisup",
    paper="Zhai et al. 2019, arXiv:1905.03670",
    summary="cross-entropy on labels beside a self-supervised task on all images",
    config=Config,
    learner=S4L,
    uses_labels=True,
)
