"""A dry run: checks the study, its data and the machine, and estimates the time from a few measured steps."""

from __future__ import annotations

from pathlib import Path

from cluster.connect import connect
from cluster.plan import ResourcePlan
from cluster.storage import open_storage
from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.engine.events import Trained
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration
from orchestrator.engine.simulation import play
from orchestrator.folder import RunFolder
from orchestrator.prepare import Prepared, check_budgets, full_seconds, plan_for, prepare
from orchestrator.study import Study


def dry_run(study: Study, out: str | Path | None = None) -> str:
    """What the study would do, and roughly how long it would take. Nothing is written."""
    target = out or study.out or Path("runs") / study.name
    RunFolder.check(target)
    prepared = prepare(study)
    with connect(study.address) as connection:
        plan = plan_for(study, connection.nodes)
    setup = prepared.setup(open_storage(target), plan)
    check_budgets(prepared, setup, plan)
    # Measured in this one process: the slots compute at the same time with the same number of threads each.
    each = {label: full_seconds(prepared, setup, label or None) for label in prepared.space.labels or ("",)}
    full = {(name, label): seconds for label, found in each.items() for name, seconds in found.items()}
    computed, trials = estimate(prepared, full, plan)
    lines = [
        *(prepared.proposed.lines() if prepared.proposed is not None else ()),
        prepared.task.describe(prepared.split),
        plan.describe(),
        *(
            f"{name}{f' with {label}' if label else ''}: about {seconds:.0f} s to {prepared.top}"
            for (name, label), seconds in full.items()
        ),
        f"estimate: about {computed / plan.slots / 60:.0f} min for {trials} trials and the finalists' selection,"
        " scoring not counted",
    ]
    return "\n".join(lines)


def estimate(prepared: Prepared, full: dict[tuple[str, str], float], plan: ResourcePlan) -> tuple[float, int]:
    """Seconds that the study's trainings would compute, all slots together, and how many trials its search would start.

    The study's own strategy and budgets decide, on scores by lot.

    Args:
        full: seconds of a full training, by method and label of the encoder (blank where the study has one).
    """

    def score(configuration: Configuration, at: Fidelity, seed: int) -> tuple[float, float]:
        which = (configuration.method, configuration.encoder)
        drawn = seed_of("estimate", *filter(None, which), sorted(configuration.values.items()), seed) / 2**63
        return drawn, full[which] * at.amount / prepared.top.amount

    course = prepared.course(plan, prepared.study.trials)
    history = History(play(course, score, plan.slots, prepared.study.trials))
    share = prepared.task.share_of_refit(prepared.split)
    last = {e.key: e.seconds for e in history.events if isinstance(e, Trained)}
    refitted = {key for key, trial in history.trials.items() if trial.spec.purpose == "refit"}
    computed = sum(seconds * (share if key in refitted else 1.0) for key, seconds in last.items())
    return computed, len(history.search())
