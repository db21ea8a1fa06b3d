"""Who is told of a study's events: the live table and TensorBoard."""

from __future__ import annotations

from cluster.plan import ResourcePlan
from orchestrator.folder import RunFolder
from orchestrator.progress import Progress
from orchestrator.study import Study
from orchestrator.sweep import Sink
from orchestrator.tensorboard import TensorBoardSink


def default_sinks(folder: RunFolder, study: Study, plan: ResourcePlan, quiet: bool) -> list[Sink]:
    """TensorBoard always; the live table unless ``quiet``."""
    sinks: list[Sink] = [TensorBoardSink(folder, study)]
    if not quiet:
        sinks.append(Progress(folder, study, plan))
    return sinks
