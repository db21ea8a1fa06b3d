"""Error under corruptions of growing severity and under adversarial perturbations of growing size.

Hendrycks & Dietterich 2019, arXiv 1903.12261, with the severities of their CIFAR-10-C; lengths grow with the image. Left out:
corruptions that no batched operation makes (JPEG, frost, snow, glass). The mean is over plain errors, not
relative to AlexNet's.
Attacks: FGSM (Goodfellow 2015, arXiv 1412.6572) and PGD (Madry 2018, arXiv 1706.06083), L-infinity, white box.

Images x are float [B, C, H, W] in [0, 1].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from methods.batch import seed_of
from methods.data.records import IntArray, LabelledSubset
from methods.parts.modes import device_of, evaluating
from methods.protocols.contract import (
    EMBED_BATCH,
    Protocol,
    Score,
    Trained,
    batches,
    mean_interval,
    part_of,
)
from methods.protocols.predict import own_or_probe, unseen
from methods.protocols.probes import above_zero, at_least
from search_spaces.domains import UserError, nearest

SEVERITIES = 5


def _noise(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=g, device=x.device)


def gaussian_noise(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[s] * _noise(x, g)


def shot_noise(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    photons = (500, 250, 100, 75, 50)[s]
    return torch.poisson(x * photons, generator=g) / photons


def impulse_noise(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[s]
    u = torch.rand(x.shape, generator=g, device=x.device)
    return torch.where(u < share, (u < share / 2).to(x.dtype), x)


def gaussian_blur(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[s] * x.shape[-1] / 32
    return T.gaussian_blur(x, [2 * max(1, round(3 * sigma)) + 1] * 2, [sigma])


def motion_blur(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    """A horizontal mean over (3, 3, 5, 5, 7) pixels of a 32-pixel image."""
    length = 2 * max(1, round((3, 3, 5, 5, 7)[s] * x.shape[-1] / 64)) + 1
    padded = F.pad(x, (length // 2, length // 2, 0, 0), mode="replicate")
    return F.avg_pool2d(padded, (1, length), stride=1)


def fog(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    """A smooth random veil, of all scales from 2 cells a side to a quarter of the image."""
    strength = (0.2, 0.5, 0.75, 1.0, 1.5)[s]
    veil = torch.zeros_like(x[:, :1])
    cells, weight = 2, 1.0
    while cells <= max(2, x.shape[-1] // 4):
        coarse = torch.rand(len(x), 1, cells, cells, generator=g, device=x.device)
        veil = veil + weight * F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=True)
        cells, weight = cells * 2, weight / 2
    top = x.amax((1, 2, 3), keepdim=True).clamp_min(1e-3)
    return (x + strength * veil / veil.amax((1, 2, 3), keepdim=True)) * top / (top + strength)


def brightness(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    return x + (0.05, 0.1, 0.15, 0.2, 0.3)[s]


def contrast(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (0.75, 0.5, 0.4, 0.3, 0.15)[s] * (x - mean)


def pixelate(x: Tensor, s: int, g: torch.Generator) -> Tensor:
    height, width = (max(1, round(side * (0.95, 0.9, 0.85, 0.75, 0.65)[s])) for side in x.shape[2:])
    return F.interpolate(F.adaptive_avg_pool2d(x, (height, width)), x.shape[2:], mode="nearest")


Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""(x, severity 0 .. 4, generator) -> corrupted x, to be clipped to [0, 1]."""

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
}


def attacked(model: nn.Module, x: Tensor, label: Tensor, epsilon: float, steps: int, start: Tensor | None = None) -> Tensor:
    """Images within ``epsilon`` of x in every pixel that raise the model's loss; one full step is FGSM, several are PGD.

    start: the first perturbation, within ``epsilon``; none for FGSM.
    """
    size = epsilon if steps == 1 else 2.5 * epsilon / steps
    delta = torch.zeros_like(x) if start is None else start
    for _ in range(steps):
        with torch.enable_grad():
            probe = (x + delta).clamp(0, 1).requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(model(probe).float(), label), probe)
        delta = (probe.detach() + size * grad.sign() - x).clamp(-epsilon, epsilon)
    return (x + delta).clamp(0, 1)


def _corrupted(corruption: Corruption, s: int, x: Tensor, label: Tensor, g: torch.Generator) -> Tensor:
    return corruption(x, s, g).clamp(0, 1)


Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""What a case does: (x, labels, generator) -> changed x."""


@dataclass(frozen=True)
class Robustness(Protocol):
    """Mean error, over corruptions or attack sizes, of the method's own classifier else of a linear probe. Smaller is better.

    Attributes:
        kind: ``corruptions``, ``fgsm`` or ``pgd``.
        corruptions: which ones; all without a name.
        severities: 1 .. 5, which ones.
        epsilons: sizes of the attacks, in 255ths of the pixel range.
        steps: of PGD.
        most: the most images that are asked.
    """

    name: ClassVar[str] = "robustness"
    maximise: ClassVar[bool] = False
    kind: Literal["corruptions", "fgsm", "pgd"] = "corruptions"
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    epsilons: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    steps: int = 10
    most: int = 1000

    def __post_init__(self) -> None:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise UserError(f"robustness.corruptions: {name} is not one{nearest(name, CORRUPTIONS)}")
        if not self.severities or not set(self.severities) <= set(range(1, SEVERITIES + 1)):
            raise UserError(f"robustness.severities must be some of 1 to {SEVERITIES}, got {list(self.severities)}")
        if not self.epsilons:
            raise UserError("robustness.epsilons must name at least one size, got none; 8 is usual")
        for epsilon in self.epsilons:
            above_zero(self.name, "epsilons", epsilon)
        at_least(self.name, "steps", self.steps, 2)
        at_least(self.name, "most", self.most, 2)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        asked = unseen(self.name, trained, fit, ask)
        if ask is None and trained.predictor is None:
            raise UserError("robustness fits a probe on the labels and cannot ask them too; give it a validation part to ask")
        rows = np.random.default_rng(seed_of(seed, "robustness")).permutation(len(asked))[: self.most]
        asked = part_of(asked, np.sort(rows))
        model = own_or_probe(trained, fit, seed)
        with evaluating(model):
            clean = self._errors(model, asked, lambda x, label, g: x, seed)
            cases = {name: self._errors(model, asked, change, seed) for name, change in self._changes(model).items()}
        each = np.mean(list(cases.values()), axis=0)
        mean, low, high = mean_interval(each)
        parts = {"clean": float(clean.mean()), **self._curves({name: float(wrong.mean()) for name, wrong in cases.items()})}
        metric = "mean corruption error" if self.kind == "corruptions" else f"mean error under {self.kind}"
        seconds = time.perf_counter() - started
        return Score(
            self.name, metric, mean, len(asked), asked.index, None, max(low, 0), min(high, 1), seconds, None, each, parts
        )

    def _changes(self, model: nn.Module) -> dict[str, Change]:
        """What is done to images and labels in each case, by the case's name."""
        if self.kind == "corruptions":
            names = self.corruptions or tuple(CORRUPTIONS)
            return {f"{name}/{s}": partial(_corrupted, CORRUPTIONS[name], s - 1) for name in names for s in self.severities}
        return {f"epsilon/{e:g}": partial(self._attack, model, e / 255) for e in self.epsilons}

    def _attack(self, model: nn.Module, epsilon: float, x: Tensor, label: Tensor, g: torch.Generator) -> Tensor:
        if self.kind == "fgsm":
            return attacked(model, x, label, epsilon, 1)
        start = (torch.rand(x.shape, generator=g, device=x.device) * 2 - 1) * epsilon
        return attacked(model, x, label, epsilon, self.steps, start)

    def _errors(self, model: nn.Module, asked: LabelledSubset, change: Change, seed: int) -> np.ndarray:
        """float64 [n]: 1 where the changed image is answered wrongly."""
        device = device_of(model)
        wrong = np.zeros(len(asked))
        index: IntArray = asked.index
        label = torch.from_numpy(asked.label).to(device)
        generator = torch.Generator(device).manual_seed(seed_of(seed, "robustness draws"))
        for rows, images in batches(asked.data.images, index, EMBED_BATCH, device):
            x = change(images.float() / 255, label[rows], generator)
            with torch.no_grad():
                wrong[rows] = (model(x).argmax(1) != label[rows]).double().cpu().numpy()
        return wrong

    def _curves(self, cases: dict[str, float]) -> dict[str, float]:
        """Every case, and for corruptions the mean of each corruption and of each severity."""
        if self.kind != "corruptions":
            return cases
        names = {case.split("/")[0] for case in cases}
        by_name = {name: float(np.mean([v for c, v in cases.items() if c.startswith(f"{name}/")])) for name in sorted(names)}
        by_severity = {
            f"severity/{s}": float(np.mean([v for c, v in cases.items() if c.endswith(f"/{s}")])) for s in self.severities
        }
        return {**by_name, **by_severity}
