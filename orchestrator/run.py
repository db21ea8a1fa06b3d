"""A study from beginning to end, in the order it flows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cluster.connect import connect
from cluster.plan import ResourcePlan, plan_resources
from methods.data.records import Split
from orchestrator.engine.controller import Controller, Sink, run_slots
from orchestrator.engine.health import HealthLimits
from orchestrator.engine.journal import FORMAT, Extended, History, Journal, Started
from orchestrator.engine.records import SlotSetup
from orchestrator.engine.slot import ship_user_code
from orchestrator.finish import finish
from orchestrator.folder import RunFolder
from orchestrator.outputs.sinks import default_sinks
from orchestrator.prepare import check_weights, load_split, versions
from orchestrator.result import Result
from orchestrator.strategies.asha_stopping import AshaStopping
from orchestrator.strategies.sampler import Search
from orchestrator.study import Study, StudyError


class Interrupted(StudyError):
    """The study was stopped before its end; its run folder can be resumed."""


def run(study: Study, out: str | Path | None = None, quiet: bool = True, sinks: Sequence[Sink] = ()) -> Result:
    """Runs a study and returns its result.

    Args:
        study: what to run.
        out: the run folder, which must not exist yet; None for ``study.out`` or ``runs/<name>``.
        quiet: without a live table.
        sinks: told of every event beside TensorBoard and the live table; one with a ``close`` is closed at the end.
    Raises:
        UserError: a mistake in the study or its data, in one line, before anything is left behind.
        Interrupted: stopped by the user; ``resume`` goes on.
    """
    target = Path(out or study.out or Path("runs") / study.name)
    RunFolder.check(target)
    study.check_objective()
    split = load_split(study)
    check_weights(study, split)
    with connect(study.address) as connection:
        plan = plan_resources(connection.nodes, workers_per_trial=study.workers, slots=study.slots, trials=study.trials)
        folder = RunFolder.create(target, study)
        journal = Journal(folder.journal)
        history = History(None, 0, {}, {}, None, None, [])
        told = [*default_sinks(folder, study, plan, quiet), *sinks]
        started = Started(FORMAT, study.trials or 0, versions())
        journal.write(started)
        history.add(started)
        return _carry_out(study, split, folder, journal, history, plan, told, connection.origin == "joined")


def resume(directory: str | Path, trials: int | None = None, study: Study | None = None, quiet: bool = True) -> Result:
    """Goes on with an interrupted study, or gives a finished one more trials.

    Args:
        directory: the run folder.
        trials: the number of trials in all; None for what the study asked for.
        study: the study, where it holds what YAML cannot (arrays, methods or an objective of your own).
    """
    folder = RunFolder.open(directory)
    study = study or folder.load_study()
    journal = Journal(folder.journal)
    try:
        return _go_on(study, folder, journal, trials, quiet)
    finally:
        journal.close()


def _go_on(study: Study, folder: RunFolder, journal: Journal, trials: int | None, quiet: bool) -> Result:
    history = History.read(folder.journal)
    if trials is not None and trials < history.trials_wanted:
        raise StudyError(f"--trials counts all trials and must be at least {history.trials_wanted}, got {trials}")
    study.check_objective()
    split = load_split(study)
    if history.chosen is None or trials is not None:
        check_weights(study, split)
    with connect(study.address) as connection:
        plan = plan_resources(connection.nodes, workers_per_trial=study.workers, slots=study.slots, trials=study.trials)
        if trials is not None and trials > history.trials_wanted:
            journal.write(Extended(trials))
            history.add(Extended(trials))
        sinks = default_sinks(folder, study, plan, quiet)
        return _carry_out(study, split, folder, journal, history, plan, sinks, connection.origin == "joined")


def _carry_out(
    study: Study,
    split: Split,
    folder: RunFolder,
    journal: Journal,
    history: History,
    plan: ResourcePlan,
    sinks: Sequence[Sink],
    remote: bool,
) -> Result:
    """Search, selection, test, report: the part that a resumed study shares with a new one."""
    shared = slot_setup(study, split, folder, plan)
    search = Search(study.space(split.fewest_images()), study.seed)
    for earlier in study.earlier:
        search.seed_from(History.read(RunFolder.open(earlier).journal).search())
    # After a cross-validation every method is trained once more, for all groups; few-shot parts are otherwise never joined.
    few_shot = study.task == "few_shot"
    refits = frozenset(n for n, m in shared.methods.items() if (bool(split.turns) if few_shot else m.reads_labels(split.train)))
    sweep = Controller(
        search=search,
        rungs=AshaStopping(study.rungs(), study.reduction),
        selection=study.selection,
        refits=refits if study.selection.refit else frozenset(),
        journal=journal,
        history=history,
        ahead=plan.slots + 1,
        seed=study.seed,
        sinks=sinks,
        stops=HealthLimits(study.stop, {name: method.min_epochs for name, method in shared.methods.items()}),
    )
    try:
        ship_user_code(shared.methods.values(), shared.objective)
        run_slots(sweep, shared, plan)
        if not sweep.over:
            raise Interrupted(f"stopped before the end; go on with 'labelwise resume {folder.path}'")
        return finish(study, split, shared, folder, sweep, plan, remote)
    finally:
        for sink in sinks:
            close = getattr(sink, "close", None)
            if close is not None:
                close()
        journal.close()


def slot_setup(study: Study, split: Split, folder: RunFolder, plan: ResourcePlan) -> SlotSetup:
    """What the slots share; without the test labels."""
    encoder, vit_encoder = study.encoders()
    return SlotSetup(
        split=dataclasses.replace(split, test=None),
        methods=study.catalogue(),
        encoder=encoder,
        vit_encoder=vit_encoder,
        protocol=study.scoring(),
        objective=study.objective,
        rungs=study.rungs(),
        epoch_images=study.epoch_images,
        precision=study.precision,
        seed=study.seed,
        folder=str(folder.path),
        threads=plan.threads_per_worker,
    )
