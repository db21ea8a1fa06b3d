"""What the best model makes of test images: a map of their embeddings, and the nearest neighbours of a few of them.

Drawn once, after the test; the labels serve as colours only and nothing is decided by these pictures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from methods.data.records import IntArray, LabelledSubset
from methods.parts.encoders import Encoder
from methods.protocols.contract import embed
from orchestrator.outputs.plots import Colour

IMAGES, CLASSES = 1000, 20
"""At most so many test images, of at most so many classes: more colours cannot be told apart."""

QUERIES, NEIGHBOURS = 10, 5

FEWEST = 2 * (NEIGHBOURS + 1)
"""Test images below which there is nothing to see."""

_ITERATIONS = 500
"""Of t-SNE: half of its library's, and of the time; the picture is for looking at."""

_DPI = 100
_ASKED, _RIGHT, _WRONG = "#2563b0", "#2c8a4b", "#c0392b"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """A picture with its title. ``png``: the file's bytes."""

    title: str
    png: bytes


def draw_gallery(encoder: Encoder, test: LabelledSubset, seed: int) -> list[Drawing]:
    """The two pictures, the same for the same model and seed; none with fewer than 12 test images.

    Args:
        encoder: of the best model; left as it was.
        test: the test images.
        seed: of t-SNE.
    """
    rows = spread(test.label)
    if len(rows) < FEWEST:
        return []
    z = embed(encoder, test.data.images, test.index[rows]).cpu().numpy()
    if not np.isfinite(z).all():
        return []
    z = z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12)
    label = test.label[rows]
    near = nearest(z, NEIGHBOURS)
    agree = float((label[near[:, 0]] == label).mean())
    shown = len(np.unique(label))
    kinds = f"{shown} classes" if shown == len(np.unique(test.label)) else f"{shown} of {len(np.unique(test.label))} classes"
    asked = queries(label)
    pixels = test.data.images.take(torch.from_numpy(test.index[rows])).permute(0, 2, 3, 1).numpy()
    return [
        Drawing(f"map of {len(rows)} test images of {kinds} by t-SNE", _map(flat(z, seed), label, test.data.classes)),
        Drawing(
            f"nearest neighbours of test images, {agree:.0%} of {len(rows)} beside their own class",
            _sheet(pixels, label, asked, near[asked], test.data.classes),
        ),
    ]


def spread(label: IntArray) -> IntArray:
    """int64, sorted: rows of at most 1000 images, evenly spaced within at most 20 evenly spaced classes.

    Args:
        label: int64 [n].
    """
    present = np.unique(label)
    chosen = present[np.linspace(0, len(present) - 1, min(len(present), CLASSES)).round().astype(int)]
    each = IMAGES // len(chosen)
    members = [np.flatnonzero(label == k) for k in chosen]
    rows = [own[np.linspace(0, len(own) - 1, min(len(own), each)).round().astype(int)] for own in members]
    return np.sort(np.concatenate(rows))


def queries(label: IntArray) -> IntArray:
    """int64 [<= 10]: rows to ask about, of as many classes as there are, class by class."""
    order = np.argsort(label, kind="stable")
    picks = np.linspace(0, len(order) - 1, 2 * min(QUERIES, len(order)) + 1).round().astype(int)[1::2]
    return np.unique(picks) if len(order) < QUERIES else order[picks]


def nearest(z: Floats, k: int) -> IntArray:
    """int64 [n, k]: for each row of z float32 [n, D] of unit length the k others of greatest cosine, nearest first."""
    cosine = z @ z.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1, kind="stable")[:, :k].astype(np.int64)


def flat(z: Floats, seed: int) -> Floats:
    """float32 [n, 2]: t-SNE (van der Maaten & Hinton 2008, JMLR 9) of z [n, D], started from the first two principal axes."""
    centred = z - z.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    start = (u * s)[:, :2].astype(np.float32)
    if start.shape[1] < 2 or start[:, 1].std() < 1e-6:  # Collapsed to a point or a line: no axes to start from.
        start = np.random.default_rng(seed).normal(size=(len(z), 2)).astype(np.float32)
    start = start / start.std(0) * 1e-4
    perplexity = min(30.0, (len(z) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed % 2**32, max_iter=_ITERATIONS)
    return np.asarray(tsne.fit_transform(z), dtype=np.float32)


def _map(points: Floats, label: IntArray, classes: Sequence[str]) -> bytes:
    figure = Figure(figsize=(8.0, 5.6), layout="constrained")
    axes = figure.subplots()
    present = np.unique(label)
    for k, colour in zip(present, _colours(len(present)), strict=True):
        own = points[label == k]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.75, linewidths=0, label=_short(classes[k]))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])
    figure.legend(loc="outside right center", frameon=False, fontsize=9, markerscale=2)
    return _png(figure)


def _sheet(pixels: NDArray[np.uint8], label: IntArray, asked: IntArray, near: IntArray, classes: Sequence[str]) -> bytes:
    """Two queries a row, each with its neighbours to its right, framed green where they are of its class."""
    rows, across = -(-len(asked) // 2), NEIGHBOURS + 1
    h, w = (side / max(pixels.shape[1:3]) for side in pixels.shape[1:3])
    step, line, gap = 1.08, 1.26, 0.45  # Sides of images from one to the next, from row to row, and between the two halves.
    figure = Figure(figsize=(11.0, 11.0 * rows * line / (2 * across * step + gap)))
    # One pair of axes for all: a grid of axes takes seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (query, others) in enumerate(zip(asked, near, strict=True)):
        row, half = divmod(number, 2)
        for place, image in enumerate([query, *others]):
            x, y = half * (across * step + gap) + place * step, -row * line
            extent = (x + (1 - w) / 2, x + (1 + w) / 2, y - h, y)
            axes.imshow(pixels[image].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
            colour = _ASKED if not place else _RIGHT if label[image] == label[query] else _WRONG
            axes.add_patch(Rectangle((extent[0], extent[2]), w, h, fill=False, edgecolor=colour, linewidth=2.2))
            weight = "normal" if place else "bold"
            name = _short(classes[label[image]], 13)
            axes.text(x + 0.5, y + 0.03, name, fontsize=7.5, fontweight=weight, ha="center", va="bottom")
    axes.set_xlim(-0.05, 2 * across * step + gap)
    axes.set_ylim(-rows * line + 0.21, 0.24)
    axes.set_aspect("auto")
    return _png(figure)


def _colours(count: int) -> list[Colour]:
    palette = matplotlib.color_sequences["tab10" if count <= 10 else "tab20"]
    return [matplotlib.colors.to_rgb(colour) for colour in palette[:count]]


def _short(name: str, most: int = 22) -> str:
    """Cut in the middle: names of characters differ at their ends, those of alphabets at their beginnings."""
    kept = most // 3
    return name if len(name) <= most else f"{name[:kept]}…{name[kept + 1 - most :]}"


def _png(figure: Figure) -> bytes:
    # Of a fixed number of points, so that a report stays small whatever the images' size.
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()
