"""Who is told of a study's events: the live table and TensorBoard."""

from __future__ import annotations

from cluster.plan import ResourcePlan
from orchestrator.engine.turn import Sink
from orchestrator.folder import RunFolder
from orchestrator.outputs.progress import Progress
from orchestrator.outputs.tensorboard import TensorBoardSink
from orchestrator.study import Study


def default_sinks(folder: RunFolder, study: Study, plan: ResourcePlan, quiet: bool) -> list[Sink]:
    """TensorBoard always; the live table unless ``quiet``."""
    sinks: list[Sink] = [TensorBoardSink(folder, study)]
    if not quiet:
        sinks.append(Progress(folder, study, plan))
    return sinks
