"""Batched augmentation against the same recipe as per-image torchvision transforms on PIL images.

    python tests/benchmarks/bench_augment.py [--threads N] [--side 32] [--batch 256] [--repeats 9]

Each repeat times one batch of either, one after the other, and takes the ratio; the figure is the median ratio. Per-image
transforms are spread over as many processes as batched augmentation has threads, each with one thread, as a data loader does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from methods.batch import RandomStream
from methods.parts.augment import augmentation


def per_image(recipe: str, side: int) -> v2.Transform:
    """The recipe as users write it with torchvision, from a PIL image to a float tensor."""
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if recipe == "crop_flip":
        return v2.Compose([v2.RandomResizedCrop(side, scale=(0.2, 1.0)), v2.RandomHorizontalFlip(), *finish])
    if recipe == "weak":
        shift = v2.RandomCrop(side, padding=side // 8, padding_mode="reflect")
        return v2.Compose([shift, v2.RandomHorizontalFlip(), *finish, v2.GaussianNoise(sigma=0.0375)])
    if recipe == "strong":
        shift = v2.RandomCrop(side, padding=side // 8, padding_mode="reflect")
        cut = v2.RandomErasing(p=1.0, scale=(1e-3, 0.25), ratio=(1.0, 1.0), value=0.5)
        return v2.Compose([shift, v2.RandomHorizontalFlip(), v2.RandAugment(2, 15), *finish, cut])
    kernel = max(side // 10, 2) // 2 * 2 + 1
    return v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5),
            *finish,
        ]
    )


def one_thread() -> None:
    torch.set_num_threads(1)


def augment_share(recipe: str, side: int, images: np.ndarray) -> float:
    """Seconds this process takes for its images [n, H, W, 3], decoded before the clock starts; one warm-up image."""
    transform = per_image(recipe, side)
    pictures = [Image.fromarray(image) for image in images]
    transform(pictures[0])
    start = time.perf_counter()
    torch.stack([transform(picture) for picture in pictures])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, options.side, options.side, 3), dtype=np.uint8)
    images: Tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    shares = np.array_split(pixels, options.threads)
    print(f"{options.batch} images of {options.side} x {options.side}, {options.threads} threads, {platform.machine()}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.threads, mp_context=spawn, initializer=one_thread) as pool:
        for recipe in ("weak", "simclr", "strong", "crop_flip"):
            augment = augmentation(recipe)
            draws = RandomStream(0, options.batch, slice(0, options.batch), images.device)
            batched, single = [], []
            for repeat in range(options.repeats + 2):  # the first two warm both up
                start = time.perf_counter()
                augment(images, draws)
                seconds = time.perf_counter() - start
                slowest = max(pool.map(augment_share, [recipe] * len(shares), [options.side] * len(shares), shares))
                if repeat >= 2:
                    batched.append(seconds)
                    single.append(slowest)
            ratios = [b / a for a, b in zip(batched, single, strict=True)]
            print(
                f"{recipe:10s} batched {options.batch / statistics.median(batched):8,.0f} img/s, per image "
                f"{options.batch / statistics.median(single):6,.0f} img/s, median ratio {statistics.median(ratios):5.1f} "
                f"(min {min(ratios):.1f}, max {max(ratios):.1f}, n {len(ratios)})"
            )


if __name__ == "__main__":
    main()
