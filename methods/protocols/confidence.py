"""Confidences one can use: a temperature fitted on answers for images that the model has not learnt from, and how far the
confidences that follow may be relied on.

n images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch.nn import functional as F

from methods.parts.heads import Tempered
from methods.protocols.contract import Answers
from methods.protocols.reliability import calibration_error

BINS = 15
"""Of the calibration error, of equal width in confidence (Guo et al. 2017)."""

SIMULATIONS = 200
"""Of a perfectly calibrated model, whose calibration error on few images is above 0 too."""

POINTS = 20
"""Of the curve of accuracy against coverage."""

DOUBT = 0.25
"""Scale of the Laplace prior on the logarithm of the temperature. It keeps a temperature at exactly 1 until the answers say
otherwise, since from few answers a temperature is uncertain. In simulations (40 to 250 answers, accuracies .65 to .99, true
temperatures .6 to 2.5) it costs a model that needs none .007 of calibration error, where maximum likelihood costs .012 and up
to .021; against maximum likelihood the others gain."""

WIDEST = 50.0
"""Temperatures are sought from 1 / ``WIDEST`` to this."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """How a classifier's logits are calibrated; see ``Tempered``.

    Attributes:
        temperature, share: of the layer.
        answers: images that they were fitted on.
    """

    temperature: float
    share: float
    answers: int

    def layer(self) -> Tempered:
        return Tempered(self.temperature, self.share)


@dataclass(frozen=True)
class Reliability:
    """How far the confidences of a classifier may be relied on.

    Attributes:
        before, after: expected calibration error without and with the scaling (``BINS`` bins).
        perfect_before, perfect_after: that of a perfectly calibrated model with the same confidences on as many images.
        coverage: shares of the images, those that the calibrated model is surest of, ascending to 1.
        accuracy: of each share.
    """

    before: float
    perfect_before: float
    after: float
    perfect_after: float
    coverage: Sequence[float]
    accuracy: Sequence[float]

    def at(self, coverage: float) -> float:
        """Accuracy on the share of the images that the model is surest of, between the points by a straight line."""
        return float(np.interp(coverage, self.coverage, self.accuracy))


def fit_scaling(logits: FloatArray, label: NDArray[np.int64], weight: FloatArray | None = None) -> Scaling:
    """The temperature of the highest posterior density, given answers for images that the model has not learnt from.

    Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599, by likelihood and the prior of ``DOUBT``.

    Args:
        logits: float [n, K].
        label: [n], the true classes.
        weight: [n] of the answers, below 1 where an image was answered for more than once; None for 1 each.
    """
    v = np.ones(len(label)) if weight is None else weight
    # As much doubt about what was ruled out as n answers, all right, would leave (the rule of succession).
    share = 1 / (float(v.sum()) + 1)
    target, rows = torch.from_numpy(label), torch.from_numpy(v)
    log_p = Tempered(1.0, share)(torch.from_numpy(logits).double())

    def cost(log_t: float) -> float:
        losses = F.cross_entropy(log_p * float(np.exp(-log_t)), target, reduction="none")
        return float(rows @ losses) + abs(log_t) / DOUBT

    # The prior has an edge at 1, so each side is searched by itself.
    sides = [
        optimize.minimize_scalar(cost, bounds=side, method="bounded") for side in ((-np.log(WIDEST), 0), (0, np.log(WIDEST)))
    ]
    best = min(((float(side.fun), float(side.x)) for side in sides), default=(0.0, 0.0))
    log_t = best[1] if best[0] < cost(0.0) else 0.0
    return Scaling(float(np.exp(log_t)), share, round(float(v.sum())))


def reliability(answers: Answers, scaling: Scaling, seed: int) -> Reliability:
    """What the confidences are worth on images that had no part in anything, such as the test's.

    Args:
        answers: of the classifier as it is, before any scaling.
        scaling: that it is given.
        seed: of the simulations.
    """
    logits = torch.from_numpy(answers.logits).double()
    random, figures = np.random.default_rng(seed), []
    for z in (logits, scaling.layer()(logits)):
        found = z.softmax(1).max(1)
        sure, right = found.values.numpy(), found.indices.numpy() == answers.label
        drawn = (random.random(len(sure)) < sure for _ in range(SIMULATIONS))
        perfect = float(np.mean([calibration_error(sure, each.astype(np.float64), BINS) for each in drawn]))
        figures.append((calibration_error(sure, right.astype(np.float64), BINS), perfect))
    counts = np.unique(np.ceil(len(sure) * np.arange(1, POINTS + 1) / POINTS).astype(int))
    kept = np.cumsum(right[np.argsort(-sure, kind="stable")])[counts - 1] / counts
    return Reliability(*figures[0], *figures[1], tuple((counts / len(sure)).tolist()), tuple(kept.tolist()))
