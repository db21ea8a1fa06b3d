"""Divisions that keep groups (patient, scene, video) whole, as close to every class's share as the groups allow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from methods.data.records import ImageSet, IntArray
from methods.data.views import image_hashes
from search_spaces.domains import UserError

STARTS = 8
"""Drawn orders in which groups are offered, at most; the division that comes closest is taken."""

EXACT = 1e-6
"""Squared distance from the classes' shares that needs no further order."""


def kept_together(data: ImageSet) -> IntArray:
    """int64 [N], 0 ..: images that share a group, or are exact copies of each other, have one number.

    Raises:
        UserError: no groups, or a labelled image without one.
    """
    if data.group is None:
        raise UserError(
            "keep_groups needs data with groups (a group column or alphabet/character folders), got none; leave it out"
        )
    bare = np.flatnonzero((data.group < 0) & (data.label >= 0))
    if len(bare):
        first = data.names[bare[0]] if data.names else f"number {bare[0]}"
        raise UserError(
            f"keep_groups needs the group of every labelled image, but {len(bare)} have none, first {first};"
            " fill the group column"
        )
    n, groups = len(data), len(data.groups)
    seen: dict[bytes, int] = {}
    copy = np.array([seen.setdefault(digest, len(seen)) for digest in image_hashes(data.images)], dtype=np.int64)
    grouped = np.flatnonzero(data.group >= 0)
    # Images 0 .. n-1, then groups, then distinct images, as nodes; an image hangs on its group and on what it shows.
    start = np.concatenate([grouped, np.arange(n)])
    end = np.concatenate([n + data.group[grouped], n + groups + copy])
    size = n + groups + len(seen)
    edges = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    return np.unique(component[:n], return_inverse=True)[1].astype(np.int64)


def divided_by_group(
    label: IntArray, unit: IntArray, classes: tuple[str, ...], share: float, seed: int, what: str, leave: int = 1
) -> NDArray[np.bool_]:
    """bool [n]: whole units whose classes come closest to ``share`` of every class.

    Args:
        label, unit: int64 [n].
        classes: names.
        what: what the part is for, in an error.
        leave: units of every class that stay outside; one lies inside.
    Raises:
        UserError: a class lies in too few units, or the units cannot be divided so that every class is on both sides.
    """
    number = np.unique(unit, return_inverse=True)[1]
    count = np.zeros((number.max() + 1, len(classes)), dtype=np.int64)
    np.add.at(count, (number, label), 1)
    present = np.flatnonzero(count.sum(0))
    lies_in = (count > 0).sum(0)
    few = [k for k in present if lies_in[k] < 1 + leave]
    if few:
        where = "a single group" if lies_in[few[0]] == 1 else f"{lies_in[few[0]]} groups"
        raise UserError(
            f"keep_groups needs {1 + leave} groups of every class, {what}, but {classes[few[0]]} lies in {where}; add images of"
            " others, or leave keep_groups out"
        )
    random = np.random.default_rng(seed)
    chosen, missing, distance = _chosen(count[:, present], share, leave, random.permutation(len(count)))
    for _ in range(STARTS - 1):
        if not missing and distance < EXACT:
            break
        other = _chosen(count[:, present], share, leave, random.permutation(len(count)))
        chosen, missing, distance = min((chosen, missing, distance), other, key=lambda each: each[1:])
    if missing:
        inside = chosen @ (count > 0)
        k = next(k for k in present if inside[k] < 1 or lies_in[k] - inside[k] < leave)
        raise UserError(
            f"keep_groups cannot divide these groups so that every class is on both sides, {what}, first {classes[k]}:"
            " its groups hold other classes too; add images of other groups, or leave keep_groups out"
        )
    return chosen[number]


def _chosen(count: IntArray, share: float, leave: int, order: IntArray) -> tuple[NDArray[np.bool_], int, float]:
    """bool [U] units, how many it lacks of those that must lie inside and outside, and the distance from the shares.

    Units are offered in ``order`` and taken where that brings the classes closer; then the best single change is made until
    none helps.

    Args:
        count: int64 [U, K], images of each class in each unit.
    """
    total, lies_in = count.sum(0), (count > 0).astype(np.int64)
    part = count / total  # of each class

    def distance(inside: NDArray[Any], units: NDArray[Any]) -> NDArray[np.float64]:
        """[...]: the sum of squares over classes, and 1 for each unit that a class lacks on either side."""
        lack = np.maximum(1 - units, 0) + np.maximum(leave - (lies_in.sum(0) - units), 0)
        return ((inside - share) ** 2).sum(-1) + lack.sum(-1)

    chosen = np.zeros(len(count), dtype=bool)
    inside, units = np.zeros(len(total)), np.zeros(len(total), dtype=np.int64)
    now = float(distance(inside, units))
    for u in order:
        then = float(distance(inside + part[u], units + lies_in[u]))
        if then < now:
            chosen[u], now = True, then
            inside, units = inside + part[u], units + lies_in[u]
    for _ in range(len(count)):
        sign = np.where(chosen, -1, 1)[order, None]
        each = distance(inside + sign * part[order], units + sign * lies_in[order])
        best = int(each.argmin())
        if each[best] >= now - 1e-12:
            break
        chosen[order[best]] ^= True
        inside, now = inside + sign[best] * part[order[best]], float(each[best])
        units = units + sign[best] * lies_in[order[best]]
    lack = np.maximum(1 - units, 0) + np.maximum(leave - (lies_in.sum(0) - units), 0)
    return chosen, int(lack.sum()), now


def straddling(unit: IntArray, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> IntArray:
    """int64 [m]: positions in ``second``, bool [N], whose unit lies in ``first`` too."""
    return np.flatnonzero(second & np.isin(unit, unit[first]))
