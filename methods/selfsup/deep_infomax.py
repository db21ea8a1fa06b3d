"""Deep InfoMax: maximise the mutual information of an image's embedding with its local features, and of two views' embeddings.

Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler & Bengio 2019, "Learning deep representations by mutual
information estimation and maximization", arXiv:1808.06670. A critic scores pairs; own pairs are drawn from the joint
distribution, pairs with other images of the batch from the product of the marginals. The estimator is a choice: InfoNCE,
Jensen-Shannon (JSD) or Donsker-Varadhan (DV). Local: embedding with every place of the last but one layer. Global: embedding
with the embedding of a second view, which stands in for the paper's whole feature map.

Deviations: AdamW instead of Adam; no matching of a prior; one critic, the dot product of two small networks' outputs (the
paper's "encode and dot"), pooled to 4 x 4 places. `across_views` takes the local features from the second view, as Bachman 2019
(arXiv:1906.00910) found better; False is Hjelm's single view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer
from methods.parts.backbone import BackboneEncoder
from methods.parts.cnn import Conv4
from methods.parts.decoders import map_channels
from methods.parts.encoders import Encoder
from methods.parts.heads import mlp
from methods.parts.losses.precision import full_precision
from methods.selfsup.shared import SelfConfig, beside, two_views
from methods.world import World
from search_spaces.domains import SWITCH, Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    estimator: str = knob(
        "infonce", Choice(("infonce", "jsd", "dv")), doc="of the mutual information", source="Hjelm 2019: JSD and InfoNCE lead"
    )
    local_weight: float = knob(
        1.0, Float(0.0, 1.0), legal=Float(0.0, 100.0), doc="of embedding and local features", source="Hjelm 2019: beta 1"
    )
    global_weight: float = knob(
        0.5, Float(0.0, 1.0), legal=Float(0.0, 100.0), doc="of embeddings of two views", source="Hjelm 2019: alpha .5"
    )
    across_views: bool = knob(True, SWITCH, doc="local features of another view than the embedding's", source="Bachman 2019")
    critic_width: int = knob(128, None, legal=Int(1, 4096), unit="units", doc="width of the critic", source="Hjelm 2019: 2048")


@full_precision
def negative_information(scores: Tensor, estimator: str, first: int, world: World) -> Tensor:
    """Minus an estimate of the mutual information, up to a constant.

    Args:
        scores: float [B, G, P], the critic's T of row i with place p of image j of the global batch.
        estimator: ``infonce``: -log softmax of the own image among all images, for each place. ``jsd``: softplus(-T) of own
            pairs plus softplus(T) of others, means. ``dv``: log mean exp T of others minus the mean T of own pairs.
        first: the global position of this worker's first row.
        world: the workers; for ``dv`` the mean of exp is the global batch's.
    Returns:
        scalar; the mean over the workers is the global batch's value.
    """
    b, g, places = scores.shape
    own = torch.arange(b, device=scores.device) + first
    joint = scores[torch.arange(b, device=scores.device), own]  # B P
    if estimator == "infonce":
        return (scores.logsumexp(1) - joint).mean()
    mine = F.one_hot(own, g).bool()[:, :, None]  # B G 1
    if estimator == "jsd":
        others = F.softplus(scores).masked_fill(mine, 0.0).sum() / (b * (g - 1) * places)
        return F.softplus(-joint).mean() + others
    assert estimator == "dv", estimator
    top = world.gather(scores.detach().amax().view(1)).amax()
    total = world.sum((scores - top).exp().masked_fill(mine, 0.0).sum())
    return total.log() + top - math.log(g * (g - 1) * places) - joint.mean()


@full_precision
def scores(query: Tensor, keys: Tensor) -> Tensor:
    """The critic's [B, G, P]: scaled dot products of embeddings [B, E] with the places of all images [G, E, P]."""
    return torch.einsum("be,gep->bgp", query, keys) * query.shape[1] ** -0.5


def pooled(encoder: Encoder, last: Tensor) -> Tensor:
    """The encoder's embedding [B, D] from its last map, which it pools or, where D says so, flattens on its own grid."""
    if last.shape[1] == encoder.dim:
        return last.mean((2, 3))
    assert isinstance(encoder, Conv4), type(encoder)
    return F.adaptive_avg_pool2d(last, encoder.grid).flatten(1)


class DeepInfoMax(Learner):
    """Encoder, and the critics' networks for the embedding, the local features and the second view."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("simclr", config.augmentation_strength)
        self.backbone = context.new_encoder()
        # A library's network may do more to its last map than to average it: its embedding takes a pass of its own.
        self.apart = isinstance(self.backbone, BackboneEncoder)
        self.layer, self.last = self.backbone.layers[-1:] * 2 if self.apart else self.backbone.layers[-2:]
        local, width = map_channels(self.backbone)[self.layer], config.critic_width
        self.of_embedding = mlp(self.backbone.dim, width, width, 2, norm=True)
        self.of_view = mlp(self.backbone.dim, width, width, 2, norm=True)
        self.of_place = nn.Sequential(nn.Conv2d(local, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        batch, c, world = step.from_pool(), self.config, step.world
        images = torch.cat(two_views(self.augment, batch))
        maps = self.backbone.maps(images)
        z, other = (self.backbone(images) if self.apart else pooled(self.backbone, maps[self.last])).chunk(2)  # B D each
        near, far = maps[self.layer].chunk(2)  # B c h w each
        local = self.of_place(F.adaptive_avg_pool2d(far if c.across_views else near, min(4, *near.shape[2:])))  # B E 4 4
        query = self.of_embedding(z).float()  # B E
        first = world.rank * len(batch)
        of_places = negative_information(scores(query, world.gather(local.float().flatten(2))), c.estimator, first, world)
        view = self.of_view(other).float()[:, :, None]  # B E 1
        of_views = negative_information(scores(query, world.gather(view)), c.estimator, first, world)
        parts = {"local": of_places.detach(), "global": of_views.detach()}
        return Loss(c.local_weight * of_places + c.global_weight * of_views, parts)

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw()

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view 1 | view 2": beside(batch.images, *two_views(self.augment, batch))}


METHOD = Method(
    name="deep_infomax",
    family="selfsup",
    paper="Hjelm et al. 2019, arXiv:1808.06670",
    summary="maximise the information between an embedding and local features",
    config=Config,
    learner=DeepInfoMax,
)
