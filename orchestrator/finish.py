"""The end of a study: the winner is chosen by validation, then the test set is opened once, then everything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TypeVar

import ray
import torch

from cluster.plan import ResourcePlan
from methods.data.records import LabelledSubset, Split
from methods.parts.modes import threads
from methods.protocols.confidence import Scaling
from orchestrator.care.files import read_care
from orchestrator.care.study import write_care_of
from orchestrator.engine.calibration import calibrate
from orchestrator.engine.controller import Controller
from orchestrator.engine.distillation import distil
from orchestrator.engine.ensemble import Model, can_vote, ensemble_of, voters
from orchestrator.engine.events import Chosen, Distilled, EnsembleTested, Forgotten, Step, Tested
from orchestrator.engine.examination import examine, examine_steps
from orchestrator.engine.finalists import Finalist, finalists
from orchestrator.engine.history import History
from orchestrator.engine.prediction import predict_test
from orchestrator.engine.records import SlotSetup, TestScore, TrialSpec
from orchestrator.engine.trial import load_training
from orchestrator.features import remember_features
from orchestrator.folder import RunFolder, file_name
from orchestrator.outputs.ensemble import scaling_of
from orchestrator.outputs.export import Several, export_best
from orchestrator.outputs.gallery import draw_gallery
from orchestrator.outputs.leaderboard import leaderboard
from orchestrator.outputs.optuna_storage import write_optuna
from orchestrator.outputs.report import write_report
from orchestrator.outputs.tensorboard import show_pictures
from orchestrator.outputs.verdict import verdict
from orchestrator.prepare import Prepared
from orchestrator.result import Result, knob_columns

Made = TypeVar("Made")


def finish(
    prepared: Prepared, shared: SlotSetup, folder: RunFolder, controller: Controller, plan: ResourcePlan, remote: bool
) -> Result:
    """Chooses, tests, exports and reports. What a resumed study finds done is not done again.

    Args:
        prepared, shared: the study, and what its slots share of it.
        folder: where everything is written.
        controller: of the study, which has nothing left to train.
        plan: what a test may use.
        remote: whether this process only drives a cluster elsewhere, so that testing must be sent there.
    """
    history, split = controller.history, prepared.split
    board = finalists(history)
    if board and history.chosen is None:
        first = board[0].exported or board[0].trial
        controller.tell(Chosen(board[0].trial.spec.trial, first.spec.key))
    if board and history.calibrated is None and not history.tests and (found := calibrate(board[0], shared)) is not None:
        controller.tell(found)
    if board and history.ensembled is None and not history.tests and (members := ensemble_of(board, shared)) is not None:
        wanted = prepared.study.selection.ensemble
        votes = wanted and _there(plan, remote, _can_vote, shared, voters(board, members))
        controller.tell(replace(members, exported=votes))
    exported = history.ensembled if history.ensembled is not None and history.ensembled.exported else None
    voting = voters(board, exported) if exported is not None else ()
    if exported is not None and _to_distil(prepared, history):
        one = _there(plan, remote, _distil, shared, voting, exported.scaling)
        if one is not None:
            controller.tell(one)
    if split.test is not None and history.predicted is None and not history.tests and prepared.facts.labels:
        said = predict_test(history, prepared.facts.labels, len(split.test), shared.seed, prepared.label_free)
        if said is not None:
            controller.tell(said)
    test_finalists(board, shared, split, controller, plan, remote)
    if exported is not None and not history.steps and split.test is not None:
        asked = (shared, split.test, voting, exported.scaling, history.distilled)
        controller.tell(EnsembleTested(_there(plan, remote, _test_steps, *asked)))
    write_outputs(prepared, folder, history)
    board = finalists(history)
    if board and board[0].exported is not None:
        with threads(shared.threads):
            several = Several(board, exported, history.distilled, history.steps) if exported is not None else None
            scaling = scaling_of(history, several is not None)
            export_best(board[0], shared, folder, prepared.study.selection.join, scaling, several)
    _tidy(folder, controller)
    # Last, so that no result waits for a picture.
    with threads(shared.threads if remote else _whole(shared, plan).threads):
        new = write_care_of(prepared, shared, folder, history)
        new = draw_best(shared, split, folder, history) or new
    if new:
        write_words(prepared, folder, history)
    return Result.open(folder.storage)


def _to_distil(prepared: Prepared, history: History) -> bool:
    """Whether the ensemble is still to be distilled; never after the test was opened."""
    return prepared.study.selection.distill and history.distilled is None and not history.tests


def _tidy(folder: RunFolder, controller: Controller) -> None:
    """Removes checkpoints that nothing needs any more: the search's, and what a kill has left of them."""
    history = controller.history
    kept = [t.spec.key for t in history.search() if t.checkpoint is not None]
    if kept:
        controller.tell(*(Forgotten(key) for key in kept))
    needed = {trial.checkpoint for trial in history.trials.values() if trial.spec.purpose != "search"}
    for key in folder.storage.list(folder.TRIALS):
        if PurePosixPath(key).name.startswith("checkpoint-") and key not in needed:
            folder.storage.delete(key)


def test_finalists(
    board: list[Finalist], shared: SlotSetup, split: Split, controller: Controller, plan: ResourcePlan, remote: bool
) -> None:
    """Asks the test set, where there is one, about every finalist's models, each once; about the winner's first, about the
    others' as far as the study's time goes.
    """
    if split.test is None:
        return
    known = {score.key for score in controller.history.tests}
    wanted = [t for f in board for t in f.tested if t.spec.key not in known and t.checkpoint is not None]
    # Of the winner's models alone: others are not handed back.
    calibrated = controller.history.calibrated
    own = {} if calibrated is None else dict.fromkeys((t.spec.key for t in board[0].tested), calibrated.scaling)
    if not wanted:
        return
    first = {trial.spec.key for trial in board[0].tested}
    if not remote:
        # The slots are done, so the machine is free, and this process is warm: a new one would cost seconds.
        shared = _whole(shared, plan)
        for trial in wanted:
            if trial.spec.key not in first and not controller.course.ledger.bears_test(controller.history):
                break
            assert trial.checkpoint is not None
            score = _test(shared, split.test, trial.spec, trial.checkpoint, own.get(trial.spec.key))
            controller.tell(Tested(score))
        return
    # A model is tested by one process, whatever number of workers trained it.
    request = plan.worker_resources
    task = ray.remote(num_cpus=request["CPU"], num_gpus=request.get("GPU", 0))(_test)
    setup, test = ray.put(shared), ray.put(split.test)
    for several in ([t for t in wanted if t.spec.key in first], [t for t in wanted if t.spec.key not in first]):
        if several and (several[0].spec.key in first or controller.course.ledger.bears_test(controller.history)):
            asked = [task.remote(setup, test, t.spec, t.checkpoint, own.get(t.spec.key)) for t in several]
            for score in ray.get(asked):
                controller.tell(Tested(score))


def _test(setup: SlotSetup, test: LabelledSubset, spec: TrialSpec, checkpoint: str, scaling: Scaling | None) -> TestScore:
    remember_features(setup, spec, _device(), test)
    return examine(setup, spec, checkpoint, test, _device(), scaling)


def _there(plan: ResourcePlan, remote: bool, call: Callable[..., Made], setup: SlotSetup, *given: object) -> Made:
    """What ``call`` gives of a setup and more, in this process, which has the whole machine by now, or in a worker's place."""
    if not remote:
        return call(_whole(setup, plan), *given)
    request = plan.worker_resources
    found: Made = ray.get(ray.remote(num_cpus=request["CPU"], num_gpus=request.get("GPU", 0))(call).remote(setup, *given))
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _whole(setup: SlotSetup, plan: ResourcePlan) -> SlotSetup:
    return replace(setup, threads=max(1, int(plan.total_cpus)))


def _can_vote(setup: SlotSetup, voting: Sequence[Model]) -> bool:
    return can_vote(setup, voting, _device())


def _distil(setup: SlotSetup, voting: Sequence[Model], scaling: Scaling) -> Distilled | None:
    return distil(setup, voting, scaling, _device())


def _test_steps(
    setup: SlotSetup, test: LabelledSubset, voting: Sequence[Model], scaling: Scaling, distilled: Distilled | None
) -> tuple[Step, ...]:
    for model in voting:
        remember_features(setup, model.spec, _device(), test)
    return examine_steps(setup, voting, scaling, test, _device(), distilled)


def draw_best(shared: SlotSetup, split: Split, folder: RunFolder, history: History) -> bool:
    """Pictures of what the chosen model makes of test images, in the run folder and in TensorBoard; True where any are new."""
    if history.chosen is None or split.test is None:
        return False
    trial = history.trials[history.chosen.key]
    place = folder.gallery(trial.spec.key)
    # Where no training of the selection finished, the choice is a trial of the search, whose weights are gone.
    if folder.exists(f"{place}titles.json") or trial.checkpoint is None or not folder.exists(trial.checkpoint):
        return False
    encoder = load_training(shared, trial.spec, trial.checkpoint, torch.device("cpu")).learner.encoder()
    drawings = draw_gallery(encoder, split.test, shared.seed)
    for drawing in drawings:
        folder.storage.put(f"{place}{file_name(drawing.title)}.png", drawing.png)
    show_pictures(folder, trial, "gallery", place)
    # Last, so that a gallery cut short is drawn again.
    folder.write_text(f"{place}titles.json", json.dumps([drawing.title for drawing in drawings]))
    return True


def write_outputs(prepared: Prepared, folder: RunFolder, history: History) -> None:
    """Leaderboard, Optuna storage and report, from the journal alone."""
    frame = leaderboard(history, knob_columns(prepared.study))
    folder.write_text(folder.LEADERBOARD, frame.to_csv(index=False))
    write_optuna(prepared.study.name, prepared.space, history, folder)
    write_words(prepared, folder, history)


def write_words(prepared: Prepared, folder: RunFolder, history: History) -> None:
    """Verdict and report, with what was found in the data where that was looked for."""
    care = read_care(folder.storage, folder.CARE)
    said = verdict(history, prepared.facts, care)
    folder.write_text(folder.VERDICT, "\n".join(said.sentences) + "\n")
    write_report(folder, prepared, history, said, care)
