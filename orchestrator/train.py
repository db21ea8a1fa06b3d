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
from cluster.storage import LocalStorage, Storage
from methods.parts.modes import threads
from methods.world import World
from orchestrator.engine.records import Assignment, Segment, SlotSetup, TrialSpec
from orchestrator.engine.train_group import Group
from orchestrator.engine.trial import SegmentRun, load_training, trained
from orchestrator.outputs.export import export
from orchestrator.prepare import prepare
from orchestrator.result import Result
from orchestrator.study import Study, StudyError, load_study
from search_spaces.space import Suggestion


def train(
    source: str | Path | Storage, best: bool, workers: int, out: Path, address: str | None = None, imports: Sequence[str] = ()
) -> Path:
    """Trains one configuration on the whole label budget and writes ``encoder.pt`` and ``predictor.pt`` into ``out``.

    Args:
        source: a run folder (its winner) or a study file (its first method, with defaults or fixed values).
        best: asserts that the winner is meant; a run folder without one is refused.
        workers: that train together.
        out: must not exist yet; written whole or not at all.
        imports: modules that may be imported where the study names code of one's own.
    """
    if out.exists():
        raise StudyError(f"{out} exists already; give another --out")
    study, chosen = _configuration(source, best, imports)
    prepared = prepare(study)
    if chosen is None:
        chosen = prepared.space.defaults(prepared.space.methods[0])
    spec = TrialSpec("train", 0, chosen.method, chosen.values, study.seed, "refit", encoder=chosen.encoder)
    with connect(address or study.address) as connection:
        plan = plan_resources(connection.nodes, workers_per_trial=workers, slots=1)
        temporary = Path(tempfile.mkdtemp(dir=_made(out.parent), prefix=f".{out.name}."))
        try:
            setup = prepared.setup(LocalStorage(temporary), plan)
            with threads(setup.threads):
                _export(setup, _train(setup, spec, plan), spec)
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


def _configuration(source: str | Path | Storage, best: bool, imports: Sequence[str]) -> tuple[Study, Suggestion | None]:
    """The study, and a run folder's winner."""
    if isinstance(source, Storage) or Path(source).is_dir():
        result = Result.open(source)
        winner = result.winner()
        return result.run.load_study(imports), Suggestion(winner.method, winner.config, winner.choice)
    if best:
        raise StudyError(f"--best takes the winner of a run folder, and {source} is none; leave it out for a study file")
    study = load_study(source, imports=imports)
    if study.methods is None:
        raise StudyError(f"train takes a study's first method, and {source} names none; add methods: [NAME]")
    return study, None


def _train(setup: SlotSetup, spec: TrialSpec, plan: ResourcePlan) -> str:
    """Trains to the top rung; returns the checkpoint's key."""
    runner = Group(setup, plan) if plan.workers_per_trial > 1 else SegmentRun(setup, World(device=_device()))
    try:
        runner.begin(Assignment(spec, Segment(spec.key, setup.top)))
        while (report := runner.advance()).status == "running":
            print(f"epoch {report.epoch} of {setup.top}: loss {report.parts.get('loss', float('nan')):.4f}", flush=True)
    finally:
        if isinstance(runner, Group):
            runner.close()
    if report.status == "failed" or report.checkpoint is None:
        raise StudyError(f"the training of {spec.method} failed: {report.reason}")
    return report.checkpoint


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _export(setup: SlotSetup, checkpoint: str, spec: TrialSpec) -> None:
    model = trained(load_training(setup, spec, checkpoint, torch.device("cpu")))
    export(model, setup, setup.storage)
