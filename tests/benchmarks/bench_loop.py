"""The training loop against a bare hand-written one: same model, precision, batches, augmentation and optimizer.

``python tests/benchmarks/bench_loop.py`` alternates the two in short stretches and prints the median ratio of their times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from methods import Classifier, EncoderSpec, Training, TrainSettings, method
from methods.batch import RandomStream
from methods.data.records import ArrayImages, TrainData
from methods.parts.augment import augmentation
from methods.parts.encoders import build_encoder
from search_spaces.domains import build

BATCH, SIDE, STEPS, PAIRS = 128, 32, 6, 9
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def data() -> TrainData:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2048, SIDE, SIDE, 3), dtype=np.uint8)
    return TrainData(ArrayImages(images), random.integers(0, 10, 2048), 10, MEAN, STD)


def ours() -> Callable[[], None]:
    entry = method("supervised")
    config = build(entry.config, {"batch_size": BATCH})
    training = Training(entry, config, data(), TrainSettings(10**6, EncoderSpec("resnet_small"), precision="fp32"))

    def stretch() -> None:
        for _ in range(STEPS):
            training.one_step()

    return stretch


def bare() -> Callable[[], None]:
    given = data()
    images = torch.from_numpy(given.images.array)  # type: ignore[attr-defined]
    labels = torch.from_numpy(given.label)
    encoder = build_encoder(EncoderSpec("resnet_small"), (3, SIDE, SIDE), MEAN, STD)
    model = Classifier(encoder, 10).to(memory_format=torch.channels_last)
    view = augmentation("weak")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    order, step = torch.randperm(len(images)), 0

    def stretch() -> None:
        nonlocal step
        for _ in range(STEPS):
            rows = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
            x = view(images[rows].permute(0, 3, 1, 2), RandomStream(step, BATCH, slice(None), torch.device("cpu")))
            loss = F.cross_entropy(model(x), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1

    return stretch


def timed(stretch: Callable[[], None]) -> float:
    started = time.perf_counter()
    stretch()
    return time.perf_counter() - started


def main() -> None:
    loop, hand = ours(), bare()
    loop()
    hand()
    pairs = [(timed(loop), timed(hand)) for _ in range(PAIRS)]
    ratios = [hand_seconds / loop_seconds for loop_seconds, hand_seconds in pairs]
    speed = BATCH * STEPS / statistics.median(a for a, _ in pairs)
    print(
        f"training loop: {statistics.median(ratios):.1%} of a bare loop's speed (median of {PAIRS} pairs, "
        f"{min(ratios):.1%} to {max(ratios):.1%}; {speed:.0f} img/s, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
