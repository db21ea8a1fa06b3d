"""Odd images: far from all others, or showing nothing.

Ramaswamy, Rastogi & Shim 2000, "Efficient algorithms for mining outliers from large data sets", SIGMOD: the distance to the kth
nearest neighbour. How far is too far: a robust z-score of its logarithm (Iglewicz & Hoaglin 1993), since distances are skewed.
"""

from __future__ import annotations

import numpy as np
import torch

from methods.parts.neighbours import nearest
from orchestrator.care.copies import NEIGHBOURS, Copies
from orchestrator.care.looks import FLAT, Looks
from orchestrator.care.records import Finding

LIMIT = 3.5
"""Robust standard deviations above the median from which an image is odd; Iglewicz & Hoaglin's."""

FEWEST = 30
"""Distinct images below which nothing is odd."""


def odd_images(looks: Looks, near: Copies) -> tuple[Finding, ...]:
    """The odd images, the oddest first; of exact copies the first."""
    blank = looks.contrast[near.first].numpy() < FLAT
    z = np.zeros(len(near.first))
    shows = np.flatnonzero(~blank)
    if len(shows) >= FEWEST:
        similarity, _ = nearest(looks.features[torch.from_numpy(near.first[shows])], NEIGHBOURS)
        distance = np.log((1 - similarity[:, -1].double().numpy()).clip(1e-6))
        middle = np.median(distance)
        z[shows] = (distance - middle) / max(1.4826 * np.median(np.abs(distance - middle)), 1e-6)
    z[blank] = np.inf
    rows = [row for row in np.argsort(-z, kind="stable") if z[row] > LIMIT]
    said = {True: "one colour", False: "far from all other images"}
    finite = z[np.isfinite(z)].max(initial=LIMIT)
    return tuple(
        Finding((looks.place(int(near.first[row])),), float(min(z[row], finite)), said[bool(blank[row])]) for row in rows
    )
