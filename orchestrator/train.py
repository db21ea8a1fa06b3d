"""Training one configuration across workers by Ray Train, outside any search."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.connect import connect
from cluster.plan import ResourcePlan, plan_resources
from methods.parts.modes import threads
from methods.world import World
from orchestrator.engine.records import SlotSetup, TrialSpec
from orchestrator.engine.slot import Group
from orchestrator.engine.trial import TrialRun, load_training, trained
from orchestrator.finish import export
from orchestrator.folder import RunFolder
from orchestrator.prepare import check_weights, load_split
from orchestrator.result import Result
from orchestrator.run import slot_setup
from orchestrator.study import Study, StudyError, load_study
from search_spaces.space import Suggestion


def train(source: str, best: bool, workers: int, out: Path, address: str | None = None, imports: Sequence[str] = ()) -> Path:
    """Trains one configuration on the whole label budget and writes ``encoder.pt`` and ``predictor.pt`` into ``out``.

    Args:
        source: a run folder (its winner) or a study file (its first method, with defaults or fixed values).
        best: asserts that the winner is meant; a run folder without one is refused.
        workers: that train together.
        out: must not exist yet; written whole or not at all.
        address: of a running Ray cluster; None for the study's.
        imports: modules that may be imported for code of one's own.
    """
    if out.exists():
        raise StudyError(f"{out} exists already; give another --out")
    study, chosen = _configuration(source, best, imports)
    split = load_split(study)
    check_weights(study, split)
    if chosen is None:
        space = study.space(split.fewest_images())
        chosen = space.defaults(space.methods[0])
    spec = TrialSpec("train", 0, chosen.method, chosen.values, study.seed, "refit")
    with connect(address or study.address) as connection:
        plan = plan_resources(connection.nodes, workers_per_trial=workers, slots=1)
        temporary = Path(tempfile.mkdtemp(dir=_made(out.parent), prefix=f".{out.name}."))
        try:
            setup = slot_setup(study, split, RunFolder(temporary), plan)
            with threads(setup.threads):
                _export(setup, _train(setup, spec, plan), spec, temporary)
            shutil.rmtree(temporary / "trials")
            os.chmod(temporary, 0o755)
            os.rename(temporary, out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return out


def _made(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _configuration(source: str, best: bool, imports: Sequence[str]) -> tuple[Study, Suggestion | None]:
    """The study, and a run folder's winner."""
    if Path(source).is_dir():
        folder = RunFolder.open(source)
        winner = Result.open(source).best
        if winner is None:
            raise StudyError(f"{source} has no winner yet: finish the study with 'labelwise resume {source}'")
        return folder.load_study(imports), Suggestion(winner.method, winner.config)
    if best:
        raise StudyError(f"--best takes the winner of a run folder, and {source} is none; leave it out for a study file")
    return load_study(source, imports=imports), None


def _train(setup: SlotSetup, spec: TrialSpec, plan: ResourcePlan) -> str:
    """Trains to the top rung; returns the checkpoint's path."""
    runner = Group(setup, plan) if plan.workers_per_trial > 1 else TrialRun(setup, World(device=_device()))
    try:
        runner.begin(spec)
        while (report := runner.advance()).status == "running":
            print(f"epoch {report.epoch} of {setup.rungs[-1]}: loss {report.parts.get('loss', float('nan')):.4f}", flush=True)
    finally:
        if isinstance(runner, Group):
            runner.close()
    if report.status == "failed" or report.checkpoint is None:
        raise StudyError(f"the training of {spec.method} failed: {report.reason}")
    return report.checkpoint


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _export(setup: SlotSetup, checkpoint: str, spec: TrialSpec, folder: Path) -> None:
    export(trained(load_training(setup, spec, checkpoint, torch.device("cpu"))), setup, folder)
