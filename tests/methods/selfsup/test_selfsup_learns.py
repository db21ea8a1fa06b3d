"""A short training on scikit-learn's digits solves the pretext task better than at the start, for every method."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from methods.data.records import ArrayImages, TrainData, channel_statistics
from methods.selfsup import (
    autoencoder,
    bag_of_words,
    barlow_twins,
    byol,
    cmc,
    colorization,
    cpc,
    deep_infomax,
    denoising_autoencoder,
    dino,
    exemplar,
    inpainting,
    instance_discrimination,
    jigsaw,
    mae,
    moco,
    pirl,
    relative_patch,
    rotation,
    rotation_gan,
    simclr,
    split_brain,
    vicreg,
)
from methods.training import Training

LOSS, ACCURACY = "loss", "pretext_accuracy"

# Method, what to watch, knobs. Accuracies must rise, losses fall.
CASES: list[tuple[ModuleType, str, dict[str, Any]]] = [
    (rotation, ACCURACY, {}),
    (simclr, ACCURACY, {}),
    (moco, LOSS, {"queue": 256, "augmentation_strength": 0.5}),
    (mae, LOSS, {}),
    (byol, LOSS, {"momentum": 0.9}),
    (barlow_twins, LOSS, {}),
    (vicreg, LOSS, {}),
    (dino, LOSS, {"momentum": 0.9, "prototypes": 64}),
    (instance_discrimination, LOSS, {"loss": "softmax"}),
    (pirl, LOSS, {"negatives": 256}),
    (jigsaw, ACCURACY, {"grid": 2, "permutations": 8}),
    (relative_patch, ACCURACY, {}),
    (exemplar, LOSS, {"exemplars": 128}),
    (cpc, ACCURACY, {"negatives": 64}),
    (deep_infomax, LOSS, {}),
    (autoencoder, LOSS, {}),
    (denoising_autoencoder, LOSS, {}),
    (inpainting, LOSS, {}),
    (rotation_gan, ACCURACY, {}),
    (cmc, LOSS, {"temperature": 0.3}),
    (colorization, LOSS, {}),
    (split_brain, LOSS, {}),
]


def coloured(digits: TrainData) -> TrainData:
    """The digits in colour: each class its own hue, on a dark ground."""
    grey = digits.images.take(torch.arange(len(digits))).permute(0, 2, 3, 1).numpy()
    hue = np.random.default_rng(0).uniform(0.2, 1.0, (10, 3))
    pixels = (grey * hue[digits.label][:, None, None]).astype(np.uint8)
    images = ArrayImages(pixels)
    return TrainData(images, digits.label, 10, *channel_statistics(images), flip=False)


def few(digits: TrainData) -> TrainData:
    """The first 256 digits."""
    index = torch.arange(256)
    images = ArrayImages(digits.images.take(index).permute(0, 2, 3, 1).numpy())
    return TrainData(images, digits.label[:256], 10, digits.mean, digits.std, flip=False)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "watch", "values"), CASES, ids=[case[0].METHOD.name for case in CASES])
def test_pretext_task_is_learned(
    train: Callable[..., Training], digits: TrainData, module: ModuleType, watch: str, values: dict[str, Any]
) -> None:
    encoder = "vit_tiny" if module.METHOD.encoder == "vit" else "resnet_small"
    data = coloured(digits) if module in (cmc, colorization, split_brain) else digits
    banked = module in (instance_discrimination, pirl)
    if banked:  # A bank's row means something once its image has been seen a few times.
        data = few(digits)
    training = train(module.METHOD, data, encoder, epochs=4, epoch_images=1024, batch_size=64, lr=4e-3, **values)
    reports = [training.train_epoch().parts[watch] for _ in range(4)]
    assert np.isfinite(reports).all()
    # MoCo's queue starts with random keys, which are easily told from real ones; a bank's first visits are their own answer.
    first = reports[1] if module is moco or banked else reports[0]
    if watch == ACCURACY:
        assert reports[-1] > first + 0.02, reports
    else:
        assert reports[-1] < 0.99 * first, reports


@pytest.mark.slow
def test_bag_of_words_is_learned(train: Callable[..., Training], digits: TrainData) -> None:
    training = train(
        bag_of_words.METHOD, digits, epochs=6, epoch_images=1024, batch_size=64, lr=4e-3, words=32, teacher_share=1 / 3
    )
    reports = [training.train_epoch() for _ in range(6)]
    divergence = [r.parts["divergence"] for r in reports if r.stage == "words" and "divergence" in r.parts]
    assert divergence[-1] < 0.9 * divergence[0], divergence
