"""From a study to its data, and what computes: the part before any process starts."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version

import torch

from methods.batch import EpisodeShape
from methods.data import budget, episodic
from methods.data.records import LabelledSubset, Source, Split
from methods.data.sources import load
from methods.parts.encoders import build_encoder
from methods.parts.modes import threads
from methods.protocols.few_shot import FewShot
from methods.world import World
from orchestrator.engine.records import SlotSetup, TrialSpec
from orchestrator.engine.trial import training_of
from orchestrator.study import Study
from search_spaces.domains import UserError
from search_spaces.space import Space

PACKAGES = ("torch", "torchvision", "ray", "optuna", "learn2learn", "tensorboard", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {name: version(name) for name in ("labelwise", *PACKAGES)}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def load_split(study: Study) -> Split:
    """Loads and divides the study's data. Raises UserError in one line where it cannot be read or used."""
    source = load(study.data, size=study.size, on_bad_image=study.on_bad_image)
    test: float | Source | None = None
    if isinstance(study.test, float):
        test = study.test
    elif study.test not in (None, episodic.NO_TEST):
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
    return _few_shot_split(study, source, test)


def check_weights(study: Study, split: Split) -> None:
    """Tries the starting weights on the data, as this machine has them.

    Raises:
        UserError: they cannot be had or do not fit; in one line, before every trial finds out.
    """
    for need, spec in zip(("any", "vit"), study.encoders(), strict=True):
        if spec.init != "none" and any(method.encoder == need for method in study.catalogue().values()):
            with torch.random.fork_rng():
                build_encoder(spec, split.train.images.shape, split.train.mean, split.train.std)


def _few_shot_split(study: Study, source: Source, test: float | Source | None) -> Split:
    """The division by class, in which every part that is asked holds the study's episodes."""
    task, scoring = study.few_shot, study.scoring()
    of = scoring if isinstance(scoring, FewShot) else task
    shape = EpisodeShape(1, of.ways, of.shots, of.queries, of.within_group)
    split = episodic.split_few_shot(
        source,
        test=episodic.NO_TEST if study.test == episodic.NO_TEST else test if isinstance(test, Source) else None,
        test_groups=task.test_groups,
        by=task.hold_out,
        test_share=test if isinstance(test, float) else episodic.SHARE,
        validation_share=task.validation,
        cross_validate=shape if task.cross_validate else None,
        rotations=task.rotations,
        seed=study.seed,
    )
    if isinstance(scoring, FewShot):
        # Found out now, and not when the first trial has been trained.
        parts = [("validation", each.validation) for each in split.divisions()] + ([("test", split.test)] if split.test else [])
        left_out = [name for what, part in parts for name in _check_episodes(what, part, shape)]
        return replace(split, left_out=tuple(left_out))
    return split


def _check_episodes(name: str, part: LabelledSubset, shape: EpisodeShape) -> list[str]:
    """Names of the part's classes that are too small for the episodes."""
    try:
        sampler = episodic.EpisodeSampler(part.label, part.groups(), shape, 0)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return [part.data.classes[k] for k in sampler.left_out]


def seconds_per_epoch(setup: SlotSetup, space: Space) -> dict[str, float]:
    """Seconds that an epoch of each method's defaults takes, measured on this machine from a few steps each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    with threads(setup.threads):
        for name in space.methods:
            spec = TrialSpec(key=name, trial=0, method=name, values=space.defaults(name).values, seed=setup.seed)
            found[name] = training_of(setup, spec, World(device=device)).seconds_per_epoch()
    return found
