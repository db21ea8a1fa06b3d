"""From a study to its data, and what computes: the part before any process starts."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from methods.data import budget, episodic
from methods.data.records import Source, Split
from methods.data.sources import load
from methods.world import World
from orchestrator.records import Job, SlotSetup
from orchestrator.study import Study
from orchestrator.trial import training_of
from search_spaces.space import Space

PACKAGES = ("torch", "torchvision", "ray", "optuna", "learn2learn", "tensorboard", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {name: version(name) for name in ("labelwise", *PACKAGES)}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def load_split(study: Study) -> Split:
    """Loads and divides the study's data. Raises UserError in one line where it cannot be read or used."""
    source = load(study.data, size=study.size, on_bad_image=study.on_bad_image)
    test: float | Source | None
    if study.test is None or isinstance(study.test, float):
        test = study.test
    else:
        channels, height, width = source.train.images.shape
        test = load(study.test, size=(height, width), channels=channels, on_bad_image=study.on_bad_image)
    if study.task == "classification":
        return budget.split(
            source,
            labels=study.labels,
            test=test,
            validation=study.validation,
            imbalance=study.imbalance,
            mismatch=study.mismatch,
            seed=study.seed,
        )
    task = study.few_shot
    return episodic.split_few_shot(
        source,
        test=test if isinstance(test, Source) else None,
        test_groups=task.test_groups,
        by=task.hold_out,
        test_share=test if isinstance(test, float) else episodic.SHARE,
        validation_share=task.validation,
        rotations=task.rotations,
        seed=study.seed,
    )


def seconds_per_epoch(setup: SlotSetup, space: Space) -> dict[str, float]:
    """Seconds that an epoch of each method's defaults takes, measured on this machine from a few steps each."""
    torch.set_num_threads(setup.threads)
    found = {}
    for name in space.methods:
        job = Job(key=name, trial=0, method=name, values=space.defaults(name).values, seed=setup.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found[name] = training_of(setup, job, World(device=device)).seconds_per_epoch()
    return found
