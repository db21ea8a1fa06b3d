"""DINO: a student matches its own average's distribution over prototypes, across views; centred and sharpened, no labels.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski & Joulin 2021, "Emerging properties in self-supervised vision transformers",
arXiv:2104.14294. Cross-entropy from the teacher's softmax((t - c) / teacher temperature) on each of two large views to the
student's softmax on every other view, `local_crops` small ones included. `centring` False shows the collapse.

Deviations: runs on any encoder (a transformer's class token is the embedding); AdamW at a constant weight decay; no first
epoch with a frozen last layer; heads and prototypes sized for small images; BatchNorm in the head and at its bottleneck
(`head_norm`: without it the teacher of a short training drifts to the uniform distribution). Large views take the simclr
recipe's crop of .2-1 (with small views: .4-1, and these .05-.4 at half the side); no solarisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.assignments import assignments
from methods.parts.augment import augmentation
from methods.parts.centering import Centre
from methods.parts.ema import Ema
from methods.parts.encoders import Encoder, TokenEncoder
from methods.parts.heads import CosineHead, DinoHead, mlp
from methods.parts.ramps import cosine_momentum
from methods.selfsup.shared import SelfConfig, beside, two_views
from search_spaces.domains import SWITCH, Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.1, Float(0.05, 0.5, log=True), legal=Float(1e-3, 1e2), doc="of the student's softmax", source="Caron 2021: .1"
    )
    teacher_temperature: float = knob(
        0.04, Float(0.02, 0.07), legal=Float(1e-3, 1e2), doc="of the teacher's softmax", source="Caron 2021: .04",
    )  # fmt: skip
    momentum: float = knob(
        0.99, Float(0.9, 0.999, log1m=True), legal=Float(0.0, 0.999999), doc="of the teacher at the start; ends at 1",
        source="Caron 2021: .996 over 100 epochs",
    )  # fmt: skip
    prototypes: int = knob(
        1024, None, legal=Int(2, 65536), doc="dimensions of the distribution", source="Caron 2021: 65536, 1024 loses 3%"
    )
    local_crops: int = knob(
        0, None, legal=Int(0, 12), unit="views", doc="small views for the student", source="Caron 2021: 6-10"
    )
    head_norm: bool = knob(True, None, legal=SWITCH, doc="BatchNorm in the head", source="Caron 2021: off; see Deviations")
    centre_momentum: float = knob(0.9, None, legal=Float(0.0, 0.9999), doc="of the centre", source="Caron 2021: .9")
    centring: bool = knob(
        True, None, legal=SWITCH, doc="subtract the centre; False collapses", source="Caron 2021, section 5.3"
    )


def distillation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over pairs of different views, and over rows, of the teacher's cross-entropy with the student.

    Args:
        student: of each of V views its log-probabilities [B, K]; the first are the teacher's views.
        teacher: of each of its views its probabilities [B, K].
    """
    pairs = [-(t * s).sum(1).mean() for i, t in enumerate(teacher) for j, s in enumerate(student) if i != j]
    return torch.stack(pairs).mean()


class DINO(Learner):
    """Student, its slow copy, and the centre of the copy's scores."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        multi = config.local_crops > 0
        self.augment = augmentation(
            "simclr", config.augmentation_strength, context.data.flip, scale=(0.4, 1.0) if multi else None
        )
        small = (max(context.shape[1] // 2, 1), max(context.shape[2] // 2, 1))
        self.augment_small = augmentation(
            "simclr", config.augmentation_strength, context.data.flip, size=small, scale=(0.05, 0.4)
        )
        self.backbone = context.new_encoder()
        if isinstance(self.backbone, TokenEncoder):
            self.backbone.pool = "cls"
        dim = self.backbone.dim
        normed = nn.Sequential(
            mlp(dim, 2 * dim, 128, 3, norm=True, last_norm=True), CosineHead(128, config.prototypes, temperature=1.0)
        )
        head = normed if config.head_norm else DinoHead(dim, 2 * dim, 128, config.prototypes)
        self.student = nn.Sequential(self.backbone, head)
        self.teacher = Ema(self.student)
        self.centre = Centre(config.prototypes)

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch, c = step.from_pool(), self.config
        large = torch.cat(two_views(self.augment, batch))  # 2B C H W
        scores = self.student(large).float().chunk(2)  # B K each
        if c.local_crops:
            stream = batch.stream.fork("local")
            small = torch.cat([self.augment_small(batch.images, stream.fork(v)) for v in range(c.local_crops)])
            scores = (*scores, *self.student(small).float().chunk(c.local_crops))
        t = self.teacher(large).float()  # 2B K, no gradient
        self.fresh = t
        centred = self.centre(t) if c.centring else t
        p = (centred / c.teacher_temperature).softmax(1)
        total = distillation([(s / c.temperature).log_softmax(1) for s in scores], list(p.chunk(2)))
        agreement = (p[: len(batch)].argmax(1) == scores[1].detach().argmax(1)).float().mean()
        return Loss(total, {"agreement": agreement, **assignments(p, step.world)})

    def after_step(self, step: Step) -> None:
        self.teacher.update(self.student, cosine_momentum(self.config.momentum, step.progress))
        self.centre.update(self.fresh, self.config.centre_momentum, step.world)

    def encoder(self) -> Encoder:
        backbone = self.teacher.module.get_submodule("0")
        assert isinstance(backbone, Encoder)
        return backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw(clip=3.0)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        pictures = {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}
        backbone = self.encoder()
        if isinstance(backbone, TokenEncoder):
            heads = backbone.attention(batch.images).unflatten(2, backbone.grid)  # n heads h w
            heads = F.interpolate(heads / heads.amax((2, 3), keepdim=True), batch.images.shape[2:])
            maps = [each[:, None].expand(-1, batch.images.shape[1], -1, -1) for each in heads.unbind(1)]
            pictures["original | attention of each head"] = beside(batch.images, *maps)
        return pictures


METHOD = Method(
    name="dino",
    family="selfsup",
    paper="Caron et al. 2021, arXiv:2104.14294",
    summary="match your own average's prototype distribution across views",
    config=Config,
    learner=DINO,
)
