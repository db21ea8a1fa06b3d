"""A study from beginning to end, in the order it flows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import ray

from cluster.connect import connect
from cluster.plan import ResourcePlan
from cluster.storage import Storage, open_storage
from orchestrator.default_study import again
from orchestrator.engine.controller import Controller
from orchestrator.engine.events import FORMAT, Extended, Opened, Proposed, Started
from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal, read_journal
from orchestrator.engine.records import SlotSetup
from orchestrator.engine.slot import ship_user_code
from orchestrator.engine.tune import run_slots
from orchestrator.engine.turn import Sink
from orchestrator.features import embedded, read_index, share_of_clock
from orchestrator.finish import finish
from orchestrator.folder import RunFolder
from orchestrator.outputs.sinks import default_sinks
from orchestrator.prepare import Prepared, check_budgets, plan_for, prepare, versions
from orchestrator.result import Result
from orchestrator.study import Study, StudyError

First = Started | Proposed | Extended
"""What a process may write before all else."""


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
        began: seconds since 1970 at which the command began, from which budgets of minutes count; None where that is this call.
    Raises:
        UserError: a mistake in the study or its data, in one line, before anything is left behind.
        Interrupted: stopped by the user; ``resume`` goes on.
    """
    target = out or study.out or Path("runs") / study.name
    RunFolder.check(target)
    prepared = prepare(study, began)
    if prepared.proposed is not None and not quiet:
        for line in prepared.proposed.lines():
            _say(line)
    with connect(study.address) as connection:
        plan = plan_for(study, connection.nodes)
        check_budgets(prepared, prepared.setup(open_storage(target), plan), plan)
        folder = RunFolder.create(target, prepared.study)
        journal = Journal(folder.storage)
        remote = connection.origin == "joined"
        return _carry_out(prepared, folder, journal, History(), _begin(prepared), plan, quiet, sinks, remote)


def resume(
    directory: str | Path | Storage,
    trials: int | None = None,
    study: Study | None = None,
    quiet: bool = True,
    sinks: Sequence[Sink] = (),
    began: float | None = None,
) -> Result:
    """Goes on with an interrupted study, or gives a finished one more trials.

    Args:
        directory: the run folder.
        trials: the number of trials in all; None for what the study asked for.
        study: the study, where it holds what YAML cannot (arrays, methods or an objective of your own).
        quiet: without a live table.
        sinks, began: as for ``run``.
    """
    began = time.time() if began is None else began
    folder = RunFolder.open(directory)
    study = study or folder.load_study()
    journal = Journal(folder.storage)
    try:
        # A study killed before its first event has only just begun.
        begun = bool(folder.storage.list(folder.JOURNAL))
        history = History(read_journal(folder.storage)) if begun else History()
        study = again(study, history.proposed)
        more: list[Extended] = []
        wanted = history.trials_wanted if begun else study.trials
        if trials is not None and wanted is None:
            raise StudyError(f"--trials is for studies with a budget of trials, got {trials}; raise its own budget instead")
        if trials is not None and wanted is not None and trials < wanted:
            raise StudyError(f"--trials counts all trials and must be at least {wanted}, got {trials}")
        if trials is not None and wanted is not None and trials > wanted:
            more.append(Extended(trials, time=time.time()))
        prepared = prepare(study, began, weights=history.chosen is None or bool(more))
        first = more if begun else [*_begin(prepared), *more]
        with connect(study.address) as connection:
            plan = plan_for(study, connection.nodes)
            remote = connection.origin == "joined"
            return _carry_out(prepared, folder, journal, history, first, plan, quiet, sinks, remote)
    finally:
        journal.close()


def _begin(prepared: Prepared) -> list[First]:
    started = Started(FORMAT, prepared.study.trials, versions(), time=time.time())
    return [started, *([] if prepared.proposed is None else [replace(prepared.proposed, time=time.time())])]


def _carry_out(
    prepared: Prepared,
    folder: RunFolder,
    journal: Journal,
    history: History,
    first: Sequence[First],
    plan: ResourcePlan,
    quiet: bool,
    more_sinks: Sequence[Sink],
    remote: bool,
) -> Result:
    """Search, selection, test, report: the part that a resumed study shares with a new one."""
    with ExitStack() as closing:
        closing.callback(journal.close)
        # A finished study that is only looked at again leaves no trace in the journal.
        begun = history.chosen is not None and not first
        open_ended = not begun or len(history.tests) < _tests_due(history, prepared) or _ensemble_due(history, prepared)
        shared = prepared.setup(folder.storage, plan)
        if open_ended:
            shared = _with_features(prepared, shared, plan, quiet, remote)
        else:
            # At the size at which they were embedded, which models on them are exported with.
            shared = replace(shared, features=tuple(read_index(folder.storage)))
        sinks = [*default_sinks(folder, prepared.study, plan, quiet), *more_sinks]
        for sink in sinks:
            if close := getattr(sink, "close", None):
                closing.callback(close)
        opening = [*first, *([Opened(prepared.began, time=time.time())] if open_ended else [])]
        if opening:
            journal.write(*opening)
        for event in opening:
            history.add(event)
            for sink in sinks:
                sink(event, history)
        course = prepared.course(plan, history.trials_wanted)
        controller = Controller(course, history, plan.slots + 1, journal.write, folder.storage.delete, sinks)
        ship_user_code([*shared.methods.values(), shared.objective, shared.task, shared.protocol, shared.storage])
        run_slots(controller, shared, plan)
        if not controller.over:
            raise Interrupted(f"stopped before the end; go on with 'labelwise resume {folder.storage.address}'")
        return finish(prepared, shared, folder, controller, plan, remote)


def _with_features(prepared: Prepared, shared: SlotSetup, plan: ResourcePlan, quiet: bool, remote: bool) -> SlotSetup:
    """Embeds what the study's feature methods are fitted on, here or, for a cluster elsewhere, in a worker's place."""
    minutes = prepared.study.budget.minutes
    limit = float("inf") if minutes is None else share_of_clock(prepared.methods.values()) * 60 * minutes
    if not remote:
        processors = max(1, int(plan.total_cpus))
        return embedded(shared, prepared.split.test, processors, limit, _silent if quiet else _say)
    request = plan.worker_resources
    task = ray.remote(num_cpus=request["CPU"], num_gpus=request.get("GPU", 0))(embedded)
    found: SlotSetup = ray.get(task.remote(shared, prepared.split.test, plan.threads_per_worker, limit))
    return replace(shared, features=found.features)


def _silent(text: str) -> None:
    """Says nothing."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tests_due(history: History, prepared: Prepared) -> int:
    """Test scores that a finished study has at the least: one for each finalist's model that is asked, of the winner's alone
    where the time may have been too short for others.
    """
    if prepared.split.test is None:
        return 0
    board = finalists(history)
    asked = board[:1] if prepared.study.budget.minutes is not None else board
    return sum(len(finalist.tested) for finalist in asked)


def _ensemble_due(history: History, prepared: Prepared) -> bool:
    """Whether the ensemble that is to be exported was not tested yet."""
    found = history.ensembled
    return found is not None and found.exported and not history.steps and prepared.split.test is not None
