"""Metric learning: labelled embeddings, equal classes near and different classes far.

B rows on this worker (the anchors), G in the global batch (their company), D embedding. Distances d are Euclidean. Each loss is
the mean over the pairs or triplets of the global batch, so that the mean over workers does not depend on their number; it is 0
where the batch has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.losses.contrastive import ALONE
from methods.parts.losses.precision import full_precision
from methods.world import World
from search_spaces.domains import UserError

Mining = Literal["all", "semi_hard", "hardest"]
MINING: tuple[Mining, ...] = ("all", "semi_hard", "hardest")
Form = Literal["hadsell", "squared"]
FORMS: tuple[Form, ...] = ("hadsell", "squared")


@full_precision
def pairwise_contrastive(
    z: Tensor, label: Tensor, margin: float, form: Form = "hadsell", mining: Mining = "all", world: World = ALONE
) -> Tensor:
    """Contrastive loss over pairs (Hadsell, Chopra & LeCun 2006).

    Equal classes: d^2. Different classes: max(0, m - d)^2 with ``hadsell`` (the paper, without its factor of a half), or
    max(0, m - d^2) with ``squared`` (as tutorials write it: its gradient does not fade towards the margin).

    Args:
        z: float [B, D].
        label: int64 [B].
        margin: m > 0.
        form: ``hadsell`` or ``squared``.
        mining: ``all`` pairs; otherwise the positive and the negative pair of each triplet that ``triplets`` mines.
        world: the workers.
    Returns:
        scalar.
    """
    if form not in FORMS:
        raise UserError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    near = _Neighbourhood.of(z, label, world)
    if mining == "all":
        positive, negative = near.distance[near.same], near.distance[near.other]
    else:
        anchor, p, n = triplets(near, mining)
        positive, negative = near.distance[anchor, p], near.distance[anchor, n]
    short = margin - (negative if form == "hadsell" else negative.square())
    push = F.relu(short).square() if form == "hadsell" else F.relu(short)
    return _global_mean(torch.cat([positive.square(), push]), world)


@full_precision
def triplet(z: Tensor, label: Tensor, margin: float, mining: Mining = "semi_hard", world: World = ALONE) -> Tensor:
    """max(0, d(a, p)^2 - d(a, n)^2 + m), averaged over triplets (Schroff et al. 2015, "FaceNet", arXiv:1503.03832).

    Args:
        z: float [B, D].
        label: int64 [B].
        margin: m.
        mining: which triplets; see ``triplets``.
        world: the workers.
    Returns:
        scalar.
    """
    near = _Neighbourhood.of(z, label, world)
    anchor, p, n = triplets(near, mining)
    gap = near.distance[anchor, p].square() - near.distance[anchor, n].square()
    return _global_mean(F.relu(gap + margin), world)


@full_precision
def n_pair(anchor: Tensor, positive: Tensor, label: Tensor | None = None, world: World = ALONE) -> Tensor:
    """log(1 + sum_{j: other class} exp(a_i p_j - a_i p_i)), averaged over rows (Sohn 2016, multi-class N-pair loss).

    The paper's N pairs come from N different classes; with ``label``, positives of the anchor's own class are left out of the
    sum, so that any batch will do.

    Args:
        anchor, positive: float [B, D], row by row of one class; not normalised (the paper regularises their length instead).
        label: int64 [B], or None where all classes differ.
        world: the workers.
    Returns:
        scalar.
    """
    every = world.gather(positive)  # G D
    own = torch.arange(len(anchor), device=anchor.device) + world.rank * len(anchor)
    logits = anchor @ every.T  # B G
    if label is not None:
        twin = label[:, None] == world.gather(label)[None]
        twin = twin.scatter(1, own[:, None], False)
        logits = logits.masked_fill(twin, float("-inf"))
    return F.cross_entropy(logits, own)


def next_of_class(label: Tensor) -> Tensor:
    """int64 [B]: for each row the next row of its class, the last row's being the first; itself where it is the only one.

    Makes pairs for ``n_pair`` out of a labelled batch: ``n_pair(z, z[next_of_class(label)], label)``.
    """
    order = label.argsort(stable=True)
    sorted_ = label[order]
    n = len(label)
    place = torch.arange(n, device=label.device)
    follower = (place + 1).clamp_max(n - 1)
    ends = (sorted_[follower] != sorted_) | (place == n - 1)
    first = torch.searchsorted(sorted_, sorted_)
    return torch.empty_like(order).scatter(0, order, order[torch.where(ends, first, follower)])


@dataclass(frozen=True)
class _Neighbourhood:
    """Distances of this worker's rows to the global batch, and who is of the same or another class.

    Attributes:
        distance: float [B, G].
        same: bool [B, G], same class and not the row itself.
        other: bool [B, G], another class.
    """

    distance: Tensor
    same: Tensor
    other: Tensor

    @staticmethod
    def of(z: Tensor, label: Tensor, world: World) -> _Neighbourhood:
        # Differences rather than dot products: near twins keep their digits, and the gradient at distance 0 is 0.
        distance = torch.cdist(z, world.gather(z), compute_mode="donot_use_mm_for_euclid_dist")
        equal = label[:, None] == world.gather(label)[None]
        own = torch.arange(len(z), device=z.device) + world.rank * len(z)
        return _Neighbourhood(distance, equal.scatter(1, own[:, None], False), ~equal)


@torch.no_grad()
def triplets(near: _Neighbourhood, mining: Mining) -> tuple[Tensor, Tensor, Tensor]:
    """Anchor (row on this worker), positive and negative (rows of the global batch), int64 [T] each.

    ``all``: every positive pair with every negative. ``semi_hard``: every positive pair with the nearest negative that is
    farther than the positive, or the farthest negative where none is (Schroff et al. 2015). ``hardest``: for every anchor its
    farthest positive and its nearest negative (Hermans et al. 2017, arXiv:1703.07737).
    """
    distance, far = near.distance, float("inf")
    usable = near.other.any(1)
    if mining == "hardest":
        anchor = (near.same.any(1) & usable).nonzero().squeeze(1)
        positive = distance.masked_fill(~near.same, -far)[anchor].argmax(1)
        negative = distance.masked_fill(~near.other, far)[anchor].argmin(1)
        return anchor, positive, negative
    anchor, positive = (near.same & usable[:, None]).nonzero().unbind(1)
    others = near.other[anchor]  # P G
    if mining == "all":
        pair, negative = others.nonzero().unbind(1)
        return anchor[pair], positive[pair], negative
    if mining != "semi_hard":
        raise UserError(f"mining must be one of {', '.join(MINING)}, got {mining!r}")
    beyond = others & (distance[anchor] > distance[anchor, positive][:, None])
    nearest = distance[anchor].masked_fill(~beyond, far).argmin(1)
    farthest = distance[anchor].masked_fill(~others, -far).argmax(1)
    return anchor, positive, torch.where(beyond.any(1), nearest, farthest)


def _global_mean(values: Tensor, world: World) -> Tensor:
    """Sum of this worker's values over their mean number per worker: the mean over workers is the global mean."""
    count = world.mean(values.new_tensor(float(len(values))))
    return values.sum() / count.clamp_min(1 / world.size)
