"""The end of a study: the winner is chosen by validation, then the test set is opened once, then everything is written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import optuna
import ray
import torch
import yaml
from torch import nn

from cluster.plan import ResourcePlan
from methods.data.records import LabelledSubset, Split
from methods.parts.encoders import save_encoder
from methods.parts.files import write_text, written_whole
from methods.parts.heads import save_predictor
from methods.parts.joined import JoinedEncoder
from methods.parts.modes import threads
from methods.protocols import PROTOCOLS
from methods.protocols.contract import Trained
from orchestrator.engine.controller import Controller
from orchestrator.engine.events import Chosen, Tested
from orchestrator.engine.history import History
from orchestrator.engine.records import SlotSetup, TestScore, TrialSpec
from orchestrator.engine.trial import examine, load_training, trained
from orchestrator.folder import RunFolder, file_name
from orchestrator.oneshot import distance_of
from orchestrator.outputs.gallery import draw_gallery
from orchestrator.outputs.leaderboard import Finalist, finalists, leaderboard, verdict
from orchestrator.outputs.report import write_report
from orchestrator.outputs.tensorboard import show_pictures
from orchestrator.result import Result, knob_columns
from orchestrator.strategies.sampler import Search
from orchestrator.study import Study


def finish(
    study: Study, split: Split, shared: SlotSetup, folder: RunFolder, sweep: Controller, plan: ResourcePlan, remote: bool
) -> Result:
    """Chooses, tests, exports and reports. What a resumed study finds done is not done again.

    Args:
        remote: whether this process only drives a cluster elsewhere, so that testing must be sent there.
    """
    history = sweep.history
    board = finalists(history)
    if board and history.chosen is None:
        exported = board[0].exported or board[0].trial
        sweep.tell(Chosen(board[0].trial.spec.trial, exported.spec.key))
    test_finalists(board, shared, split, sweep, plan, remote)
    write_outputs(study, split, folder, history)
    board = finalists(history)
    if board and board[0].exported is not None:
        with threads(shared.threads):
            export_best(board[0], shared, folder, study.selection.join)
    # Last, so that no result waits for a picture.
    with threads(shared.threads):
        drawn = draw_best(shared, split, folder, history)
    if drawn:
        write_report(folder, study, split, history, verdict(history, split))
    shutil.rmtree(folder.scratch, ignore_errors=True)
    return Result.open(folder.path)


def test_finalists(
    board: list[Finalist], shared: SlotSetup, split: Split, sweep: Controller, plan: ResourcePlan, remote: bool
) -> None:
    """Asks the test set, where there is one, about every finalist's models, each once."""
    if split.test is None:
        return
    known = {score.key for score in sweep.history.tests}
    wanted = [t for f in board for t in f.tested if t.spec.key not in known and t.checkpoint is not None]
    if not wanted:
        return
    if not remote:
        # The slots are done, so the machine is free, and this process is warm: a new one would cost seconds.
        for trial in wanted:
            assert trial.checkpoint is not None
            sweep.tell(Tested(_test(shared, split.test, trial.spec, trial.checkpoint)))
        return
    # A model is tested by one process, whatever number of workers trained it.
    request = plan.worker_resources
    task = ray.remote(num_cpus=request["CPU"], num_gpus=request.get("GPU", 0))(_test)
    setup, test = ray.put(shared), ray.put(split.test)
    for score in ray.get([task.remote(setup, test, t.spec, t.checkpoint) for t in wanted]):
        sweep.tell(Tested(score))


def _test(setup: SlotSetup, test: LabelledSubset, spec: TrialSpec, checkpoint: str) -> TestScore:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    score = examine(setup, spec, checkpoint, test, device)
    return TestScore(spec.key, spec.trial, score.value, score.n, score.low, score.high)


def draw_best(shared: SlotSetup, split: Split, folder: RunFolder, history: History) -> bool:
    """Pictures of what the chosen model makes of test images, in the run folder and in TensorBoard; True where any are new."""
    if history.chosen is None or split.test is None:
        return False
    trial = history.trials[history.chosen.key]
    place = folder.gallery(trial.spec.key)
    # Where no retraining finished, the choice is a trial of the search, whose weights are gone.
    if place.exists() or trial.checkpoint is None or not Path(trial.checkpoint).is_file():
        return False
    encoder = load_training(shared, trial.spec, trial.checkpoint, torch.device("cpu")).learner.encoder()
    place.parent.mkdir(exist_ok=True)
    drawings = draw_gallery(encoder, split.test, shared.seed)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".gallery."))
    for drawing in drawings:
        (temporary / f"{file_name(drawing.title)}.png").write_bytes(drawing.png)
    os.chmod(temporary, 0o755)
    os.rename(temporary, place)
    show_pictures(folder, trial, "gallery", place)
    return True


def write_outputs(study: Study, split: Split, folder: RunFolder, history: History) -> None:
    """Leaderboard, Optuna storage and report, from the journal alone."""
    frame = leaderboard(history, knob_columns(study))
    write_text(folder.leaderboard, frame.to_csv(index=False))
    write_optuna(study, split, history, folder.optuna)
    said = verdict(history, split)
    write_text(folder.verdict, "\n".join(said.sentences) + "\n")
    write_report(folder, study, split, history, said)


def write_optuna(study: Study, split: Split, history: History, path: Path) -> None:
    """The search's ended trials as an Optuna SQLite storage, so that nothing in it is left running."""
    search = Search(study.space(split.fewest_images()), study.seed)
    trials = [search.frozen(t) for t in history.search() if t.status != "running"]
    with written_whole(path) as temporary:
        storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
        stored = optuna.create_study(storage=storage, study_name=study.name, direction="maximize")
        stored.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()


def classifier_of(model: Trained, shared: SlotSetup) -> nn.Module | None:
    """The method's own classifier, else a linear probe on the whole budget; None after a few-shot study, even where the method
    has a classifier of the training classes: those are not the ones that matter there.
    """
    if shared.protocol.name == "few_shot":
        return None
    if model.predictor is not None:
        return model.predictor
    return PROTOCOLS["linear"]().score(model, shared.split.budget(), None, shared.seed).predictor


def export(model: Trained, shared: SlotSetup, folder: Path) -> None:
    """Writes ``encoder.pt`` and, where the task has fixed classes, ``predictor.pt``.

    An encoder class of the user's own cannot be rebuilt from a file; its weights are in the checkpoint.
    """
    if not model.encoder.name:
        return
    save_encoder(folder / "encoder.pt", model.encoder)
    predictor = classifier_of(model, shared)
    if predictor is not None:
        save_predictor(folder / "predictor.pt", predictor, shared.split.labelled.data.classes)


def joined(best: Finalist, shared: SlotSetup) -> Trained:
    """The winner's trainings of all seeds as one encoder that is compared by the distance it was trained by."""
    paths = [(t.spec, t.checkpoint) for t in best.tested if t.checkpoint is not None]
    models = [trained(load_training(shared, spec, path, torch.device("cpu"))) for spec, path in paths]
    if len(models) == 1 or not models[0].encoder.name:
        return models[0]
    unit = distance_of(best.trial.spec.values) == "cosine"
    return Trained(JoinedEncoder([model.encoder for model in models], unit))


def export_best(best: Finalist, shared: SlotSetup, folder: RunFolder, join: bool = False) -> None:
    """``best/``, made whole beside its place and then moved there; ``join`` as in ``Selection``."""
    source = best.exported
    assert source is not None
    assert source.checkpoint is not None
    temporary = Path(tempfile.mkdtemp(dir=folder.path, prefix=".best."))
    model = (
        joined(best, shared) if join else trained(load_training(shared, source.spec, source.checkpoint, torch.device("cpu")))
    )
    export(model, shared, temporary)
    shutil.copyfile(source.checkpoint, temporary / "checkpoint.pt")
    spec = source.spec
    config = {"method": spec.method, **dict(spec.values)}
    write_text(temporary / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    scores = {
        "trial": spec.trial,
        "seed": spec.seed,
        "validation": best.val,
        "validation_per_seed": [t.value for t in best.retrained],
        "test": [asdict(score) for score in best.tests],
        "trained_on_validation_labels": bool(best.refits),
        "joined": len(model.encoder.members) if isinstance(model.encoder, JoinedEncoder) else 1,
        "classes": list(shared.split.labelled.data.classes),
    }
    write_text(temporary / "scores.json", json.dumps(scores, indent=2))
    os.chmod(temporary, 0o755)
    if folder.best.exists():
        shutil.rmtree(folder.best)
    os.rename(temporary, folder.best)
