"""Methods for images, trained on a frozen encoder's features by their own code: a row of features takes an image's place.

B batch, V views, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from methods.adapt.shared import Frame, head_of
from methods.batch import RandomStream
from methods.contracts import Method, TrainingError
from methods.data.records import Images, TrainData
from methods.encoder import Encoder, EncoderSpec, Shape, Statistics
from methods.features import Features
from methods.parts.augment import Augment
from methods.parts.heads import NEVER
from methods.parts.pair import PairEncoder
from methods.training.loop import Training, TrainSettings
from methods.world import World

NOISE = 0.3
"""Length of the noise that ``strong`` adds at strength 1, over that of the features; ``weak`` adds a third of it."""


class FeatureRows(Images):
    """Framed features as images [B, D, V, 1], float32, scaled to a mean squared length of 1."""

    def __init__(self, features: Features, frame: Frame, scale: float) -> None:
        self.features, self.frame, self.scale = features, frame, scale

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.features.dim, 2 if self.features.seen == "augmented" else 1, 1

    def __len__(self) -> int:
        return len(self.features)

    def take(self, index: Tensor) -> Tensor:
        """float32 [B, D, V, 1]."""
        x = self.features.rows(index)
        with torch.no_grad():
            framed = self.frame(x.flatten(0, 1)) / self.scale
        return framed.unflatten(0, x.shape[:2]).transpose(1, 2).unsqueeze(3)


class FirstView(Encoder):
    """The identity: rows [B, D, V, 1] to the first view's features [B, D]."""

    layers = ()

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.dim = shape, shape[0]

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}


def _first_view(spec: EncoderSpec, shape: Shape, mean: Statistics, std: Statistics, width: float = 1.0) -> Encoder:
    return FirstView(shape)


@dataclass(frozen=True)
class FeatureAugment(Augment):
    """One of the views by lot, and noise."""

    def __call__(self, images: Tensor, stream: RandomStream) -> Tensor:
        view = (stream.uniform() * images.shape[2]).long().clamp_max(images.shape[2] - 1)  # B
        x = images[torch.arange(len(images), device=images.device), :, view]  # B D 1
        length = NOISE * self.strength * (1.0 if self.recipe == "strong" else 1 / 3)
        noise = stream.normal(x.shape[1], 1) / x.shape[1] ** 0.5
        return (x + length * noise).unsqueeze(3)


def _recipes(recipe: str, strength: float = 1.0, **unused: Any) -> Augment:
    return FeatureAugment(recipe, strength)


def trained_head(method: Method, config: Any, features: Features) -> nn.Module:
    """The head that a method learns on features in ``config.steps`` steps, features [B, D] -> logits [B, K].

    Raises:
        TrainingError: its classifier is no linear layer on the embedding.
    """
    x, label = features.labelled()
    frame = Frame(features, config.standardise)
    scale = float(frame(x).square().sum(1).mean().sqrt().clamp_min(1e-12))
    rows = FeatureRows(features, frame, scale)
    neutral = ((0.0,) * features.dim, (1.0,) * features.dim)
    data = TrainData(rows, features.label.clamp_min(-1).numpy(), features.classes, *neutral)
    with torch.random.fork_rng(), torch.enable_grad():
        world, settings = World(device=features.device), TrainSettings(1, EncoderSpec(), features.seed, precision="fp32")

        def begun(settings: TrainSettings) -> Training:
            return Training(method, config, data, settings, world, build=_first_view, recipes=_recipes)

        # Only a learner knows how many rows a step takes.
        images = begun(settings).learner.batch_spec().images * config.steps
        training = begun(replace(settings, epoch_images=images))
        while training.finite and training.done.amount < 1:
            training.train()
    layer = getattr(training.learner.predictor(), "head", None)
    if not isinstance(layer, nn.Linear):
        raise TrainingError(f"{method.name} must end in one linear layer to be trained on features, got {type(layer).__name__}")
    encoder = training.learner.encoder()
    weight = encoder.on_channels(layer.weight) if isinstance(encoder, PairEncoder) else layer.weight
    own: nn.Linear = skip_init(nn.Linear, features.dim, features.classes, device=features.device)
    with torch.no_grad():
        present = torch.zeros(features.classes, dtype=torch.bool, device=x.device)
        present[label] = True
        own.weight.copy_(weight / scale * present[:, None])
        own.bias.copy_(torch.where(present, layer.bias, NEVER))
    return head_of(frame, own)
