"""A dry run: checks the study, its data and the machine, and estimates the time from a few measured steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.connect import connect
from cluster.plan import plan_resources
from methods.data.records import Split
from orchestrator.folder import RunFolder
from orchestrator.prepare import check_weights, load_split, seconds_per_epoch
from orchestrator.run import slot_setup
from orchestrator.study import Study


def dry_run(study: Study, out: str | Path | None = None) -> str:
    """What the study would do, and roughly how long it would take. Nothing is written."""
    target = Path(out or study.out or Path("runs") / study.name)
    RunFolder.check(target)
    study.check_objective()
    split = load_split(study)
    check_weights(study, split)
    with connect(study.address) as connection:
        plan = plan_resources(connection.nodes, workers_per_trial=study.workers, slots=study.slots, trials=study.trials)
    setup = slot_setup(study, split, RunFolder(target), plan)
    # Measured in this one process: the slots compute at the same time with the same number of threads each.
    epochs = seconds_per_epoch(setup, study.space(split.fewest_images()))
    turns = len(split.judged())
    full = {name: each * study.epochs * turns / study.workers for name, each in epochs.items()}
    mean = sum(full.values()) / len(full)
    survivors = 1 / study.reduction
    rungs = study.rungs()
    kept = rungs[0] / study.epochs + sum(
        survivors ** (i + 1) * (rungs[i + 1] - rungs[i]) / study.epochs for i in range(len(rungs) - 1)
    )
    searched = sum(full.values()) + ((study.trials or len(full)) - len(full)) * mean * kept
    chosen = study.selection
    refits = (1 / turns if split.turns or study.task == "classification" else 0) if chosen.refit else 0
    retrained = chosen.top * mean * (chosen.repeats("retrain") + chosen.repeats("refit") * refits)
    minutes = (searched + retrained) / plan.slots / 60
    c, h, w = split.train.images.shape
    lines = [
        f"data: {len(split.train)} training images of {c}x{h}x{w}, {len(split.labelled)} labels to train on, "
        f"{len(split.validation)} to validate{f' ({turns} groups in turn)' if split.turns else ''}, "
        f"{len(split.test) if split.test else 'no'} test images{' (held out)' if split.holdout else ''}"
        f"{realism(study, split)}",
        *([f"left out: {', '.join(split.left_out)} have too few images for the episodes"] if split.left_out else []),
        plan.describe(),
        *(f"{name}: {each:.1f} s an epoch, {full[name]:.0f} s to epoch {study.epochs}" for name, each in epochs.items()),
        f"estimate: about {minutes:.0f} min for {study.trials} trials and the finalists' retraining, scoring not counted",
    ]
    return "\n".join(lines)


def realism(study: Study, split: Split) -> str:
    """What makes the labels and the pool unlike a balanced, clean benchmark, with the figures that were drawn."""
    said = []
    if study.imbalance > 1:
        count = np.bincount(split.budget().label)
        said.append(f"labels imbalanced, {count.max()} of the most frequent class and {count.min()} of the rarest")
    if study.mismatch is not None:
        said.append(
            f"{split.train.classes} classes are the task ({', '.join(split.labelled.data.classes)}) and "
            f"{study.mismatch:.0%} of the unlabelled images are of others"
        )
    return "".join(f"; {each}" for each in said)
