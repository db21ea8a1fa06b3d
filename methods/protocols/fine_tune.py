"""Scores after further training on the labels: the whole network fine-tuned, and probes on a small share of the labels."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from methods.batch import RandomStream, seed_of
from methods.data.records import IntArray, LabelledSubset
from methods.parts.augment import augmentation
from methods.parts.encoders import Encoder
from methods.parts.framed import frame_in_training
from methods.parts.modes import device_of
from methods.protocols.contract import Protocol, Score, Trained, accuracy, check_classes, folds, logits_of, part_of
from methods.protocols.heads import Classifier
from methods.protocols.probes import Linear, above_zero, at_least
from methods.world import leave_world
from search_spaces.domains import UserError


@dataclass(frozen=True)
class FineTune(Protocol):
    """Accuracy after the whole network is trained on the labels, from a linear probe's solution as its first classifier.

    Starting at the probe keeps the first gradients from destroying the features (Kumar et al. 2022, arXiv 2202.10054).
    The encoder that is scored is copied; it stays as it was.

    Attributes:
        steps: optimizer steps.
        lr: of AdamW, for the whole network, falling to zero by a cosine.
        weight_decay: of AdamW.
        batch: images per step.
        augmentation_strength: of the weak recipe (translation, mirror); 0 for none.
        freeze_bn: keep the statistics and scales of batch normalisation as they were.
    """

    name: ClassVar[str] = "fine_tune"
    steps: int = 200
    lr: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 64
    augmentation_strength: float = 1.0
    freeze_bn: bool = False

    def __post_init__(self) -> None:
        at_least(self.name, "steps", self.steps, 1)
        above_zero(self.name, "lr", self.lr)
        at_least(self.name, "weight_decay", self.weight_decay, 0)
        at_least(self.name, "batch", self.batch, 2)
        at_least(self.name, "augmentation_strength", self.augmentation_strength, 0)

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        check_classes(fit)
        predictor: nn.Module | None = None
        if ask is None:
            correct = np.zeros(len(fit), dtype=bool)
            for number, (train, held) in enumerate(folds(fit, seed)):
                model = self.tuned(trained.encoder, part_of(fit, train), seed_of(seed, number))
                correct[held] = _right(model, part_of(fit, held))
            return accuracy(self.name, "accuracy", fit.index, correct, started)
        predictor = self.tuned(trained.encoder, fit, seed)
        return accuracy(self.name, "accuracy", ask.index, _right(predictor, ask), started, predictor)

    def tuned(self, encoder: Encoder, fit: LabelledSubset, seed: int) -> Classifier:
        """A fine-tuned copy, in evaluation mode."""
        model = Linear().score(Trained(encoder), fit, fit, seed).predictor
        assert isinstance(model, Classifier)
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        leave_world(model)  # Scoring is the first worker's alone: the others would never join its batch statistics.
        device = device_of(model)
        with torch.no_grad():  # Classes without a label begin level with the others.
            bias = model.head.get_parameter("bias")
            bias.copy_(torch.where(bias < -1e3, bias[bias > -1e3].min(), bias))
        model.requires_grad_(True).train()
        frame_in_training(model)
        frozen = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)] if self.freeze_bn else []
        for layer in frozen:
            layer.eval().requires_grad_(False)
        augment = augmentation("weak", strength=self.augmentation_strength, flip=fit.data.flip)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        order = _passes(len(fit), self.steps * self.batch, seed)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed_of(seed, "fine-tune"))  # Dropout inside the encoder.
            for step in range(self.steps):
                rows = order[step * self.batch : (step + 1) * self.batch]
                stream = RandomStream(seed_of(seed, "fine-tune", step), len(rows), slice(0, len(rows)), device)
                images = fit.data.images.take(torch.from_numpy(fit.index[rows])).to(device)
                label = torch.from_numpy(fit.label[rows]).to(device)
                loss = F.cross_entropy(model(augment(images, stream)), label)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))
                optimizer.step()
        return model.eval()


def _passes(n: int, total: int, seed: int) -> IntArray:
    """int64 [total]: rows 0 .. n - 1 in shuffled passes."""
    rng = np.random.default_rng(seed_of(seed, "fine-tune order"))
    return np.concatenate([rng.permutation(n) for _ in range(math.ceil(total / n))])[:total]


def _right(model: nn.Module, ask: LabelledSubset) -> np.ndarray:
    """bool [n]: which images the model answers rightly."""
    return logits_of(model, ask.data.images, ask.index).argmax(1).cpu().numpy() == ask.label


def balanced_share(fit: LabelledSubset, share: float, seed: int) -> LabelledSubset:
    """A seeded, class-balanced share of the labels, at least one of every class."""
    rng = np.random.default_rng(seed_of(seed, "share", share))
    rows = []
    for name in np.unique(fit.label):
        members = np.flatnonzero(fit.label == name)
        rows.append(rng.permutation(members)[: max(1, round(share * len(members)))])
    return part_of(fit, np.sort(np.concatenate(rows)))


@dataclass(frozen=True)
class Efficient(Protocol):
    """Accuracy from a small, class-balanced share of the labels: the 1% and 10% rows of the self-supervised literature.

    Attributes:
        share: of the labels, at least one of every class.
        by: ``linear`` probe or ``fine_tune``, with their defaults.
    """

    name: ClassVar[str] = "efficient"
    share: float = 0.1
    by: Literal["linear", "fine_tune"] = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"{self.name}.share must lie above 0 and up to 1, got {self.share:g}; 0.01 and 0.1 are usual")

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        started = time.perf_counter()
        base: Linear | FineTune = Linear() if self.by == "linear" else FineTune()
        metric = f"accuracy from {self.share:.0%} of the labels, {self.by}"
        if ask is not None:
            few = balanced_share(fit, self.share, seed)
            return replace(
                base.score(trained, few, ask, seed), protocol=self.name, metric=metric, parts={"labels": float(len(few))}
            )
        correct = np.zeros(len(fit), dtype=bool)
        used = []
        for number, (train, held) in enumerate(folds(fit, seed)):
            few = balanced_share(part_of(fit, train), self.share, seed_of(seed, number))
            found = base.score(trained, few, part_of(fit, held), seed).correct
            assert found is not None
            correct[held] = found
            used.append(len(few))
        return accuracy(self.name, metric, fit.index, correct, started, parts={"labels": float(np.mean(used))})
