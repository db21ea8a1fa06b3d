"""A study from beginning to end, in the order it flows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cluster.connect import connect
from cluster.plan import ResourcePlan
from cluster.storage import Storage, open_storage
from orchestrator.engine.controller import Controller, Sink
from orchestrator.engine.events import FORMAT, Extended, Opened, Started
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal, read_journal
from orchestrator.engine.slot import ship_user_code
from orchestrator.engine.tune import run_slots
from orchestrator.finish import finish
from orchestrator.folder import RunFolder
from orchestrator.outputs.sinks import default_sinks
from orchestrator.prepare import Prepared, check_budgets, plan_for, prepare, versions
from orchestrator.result import Result
from orchestrator.study import Study, StudyError


class Interrupted(StudyError):
    """The study was stopped before its end; its run folder can be resumed."""


def run(
    study: Study,
    out: str | Path | Storage | None = None,
    quiet: bool = True,
    sinks: Sequence[Sink] = (),
    began: float | None = None,
) -> Result:
    """Runs a study and returns its result.

    Args:
        study: what to run.
        out: the run folder, which must not exist yet, or an empty storage; None for ``study.out`` or ``runs/<name>``.
        quiet: without a live table.
        sinks: told of every event beside TensorBoard and the live table; one with a ``close`` is closed at the end.
        began: seconds since 1970 at which the command began, from which budgets of minutes count; None for now.
    Raises:
        UserError: a mistake in the study or its data, in one line, before anything is left behind.
        Interrupted: stopped by the user; ``resume`` goes on.
    """
    target = out or study.out or Path("runs") / study.name
    RunFolder.check(target)
    prepared = prepare(study, began)
    with connect(study.address) as connection:
        plan = plan_for(study, connection.nodes)
        check_budgets(prepared, prepared.setup(open_storage(target), plan), plan)
        folder = RunFolder.create(target, study)
        journal = Journal(folder.storage)
        started = Started(FORMAT, study.trials, versions(), time=time.time())
        return _carry_out(prepared, folder, journal, History(), [started], plan, quiet, sinks, connection.origin == "joined")


def resume(
    directory: str | Path | Storage,
    trials: int | None = None,
    study: Study | None = None,
    quiet: bool = True,
    began: float | None = None,
) -> Result:
    """Goes on with an interrupted study, or gives a finished one more trials.

    Args:
        directory: the run folder.
        trials: the number of trials in all; None for what the study asked for.
        study: the study, where it holds what YAML cannot (arrays, methods or an objective of your own).
        quiet: without a live table.
        began: as for ``run``.
    """
    began = time.time() if began is None else began
    folder = RunFolder.open(directory)
    study = study or folder.load_study()
    journal = Journal(folder.storage)
    try:
        history = History(read_journal(folder.storage))
        wanted = history.trials_wanted
        if trials is not None and wanted is None:
            raise StudyError(f"--trials is for studies with a budget of trials, got {trials}; raise its own budget instead")
        if trials is not None and wanted is not None and trials < wanted:
            raise StudyError(f"--trials counts all trials and must be at least {wanted}, got {trials}")
        extended = [Extended(trials)] if trials is not None and wanted is not None and trials > wanted else []
        prepared = prepare(study, began, weights=history.chosen is None or bool(extended))
        with connect(study.address) as connection:
            plan = plan_for(study, connection.nodes)
            remote = connection.origin == "joined"
            return _carry_out(prepared, folder, journal, history, extended, plan, quiet, (), remote)
    finally:
        journal.close()


def _carry_out(
    prepared: Prepared,
    folder: RunFolder,
    journal: Journal,
    history: History,
    first: Sequence[Started | Extended],
    plan: ResourcePlan,
    quiet: bool,
    more_sinks: Sequence[Sink],
    remote: bool,
) -> Result:
    """Search, selection, test, report: the part that a resumed study shares with a new one."""
    sinks = [*default_sinks(folder, prepared.study, plan, quiet), *more_sinks]
    try:
        # A finished study that is only looked at again leaves no trace in the journal.
        opening = [*first, *([] if history.chosen and not first else [Opened(prepared.began)])]
        for event in opening:
            journal.write(event)
            history.add(event)
        shared = prepared.setup(folder.storage, plan)
        earlier = [t for place in prepared.study.earlier for t in History(read_journal(RunFolder.open(place).storage)).search()]
        course = prepared.course(plan, history.trials_wanted, earlier)
        controller = Controller(course, history, plan.slots + 1, journal.write, folder.storage.delete, sinks)
        ship_user_code([*shared.methods.values(), shared.objective, shared.task, shared.protocol, shared.storage])
        run_slots(controller, shared, plan)
        if not controller.over:
            raise Interrupted(f"stopped before the end; go on with 'labelwise resume {folder.storage.address}'")
        return finish(prepared, shared, folder, controller, plan, remote)
    finally:
        for sink in sinks:
            close = getattr(sink, "close", None)
            if close is not None:
                close()
        journal.close()
