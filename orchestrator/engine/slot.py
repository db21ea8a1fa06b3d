"""A slot: a reused Tune actor that runs one segment after another; for trials on several workers it keeps a worker group.

Only here do dictionaries with string keys cross a boundary, and only Ray's.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray import tune

from cluster.plan import ResourcePlan
from methods.contracts import Method
from methods.world import World
from orchestrator.engine.events import segment_of
from orchestrator.engine.records import Assignment, Report, SlotSetup, TrialSpec
from orchestrator.engine.train_group import Group
from orchestrator.engine.trial import SegmentRun

GIVEN, REPORT = "given", "report"

OURS = ("cluster", "methods", "orchestrator", "search_spaces")
"""Packages that every worker has."""


def ship_user_code(parts: Iterable[object]) -> None:
    """Lets a user's own code travel to the workers: its modules need not exist there.

    Args:
        parts: methods, functions and objects that the slots use.
    """
    # A function that uses torch beside a name such as ``classes`` drags the namespace torch.classes along, which travels by
    # name only.
    for namespace in (torch.classes, torch.ops):
        copyreg.pickle(type(namespace), _by_name)
    owners = set()
    for part in parts:
        own = (part.config, part.learner, part.stages, part.fit) if isinstance(part, Method) else (part,)
        owners |= {inspect.getmodule(each if callable(each) else type(each)) for each in own}
    for module in owners:
        if module is not None and module.__name__ not in ("__main__", "builtins") and module.__name__.split(".")[0] not in OURS:
            ray.cloudpickle.register_pickle_by_value(module)


def _by_name(module: Any) -> tuple[Any, tuple[str]]:
    return importlib.import_module, (module.__name__,)


def encode_assignment(given: Assignment) -> dict[str, str]:
    """A slot's work as Tune's trial config."""
    return {GIVEN: json.dumps(asdict(given))}


def decode_assignment(config: dict[str, Any]) -> Assignment:
    """See ``encode_assignment``."""
    body = json.loads(config[GIVEN])
    return Assignment(TrialSpec(**body["spec"]), segment_of(**body["segment"]), body["illustrate"])


def decode_report(result: dict[str, Any]) -> Report | None:
    return result.get(REPORT)


class Slot(tune.Trainable):
    """One warm process. ``reset_config`` hands it the next trial; nothing of the last one stays."""

    def setup(self, config: dict[str, Any], *, shared: SlotSetup, plan: ResourcePlan) -> None:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self._top = shared.top.amount
        self._runner: SegmentRun | Group = (
            Group(shared, plan) if plan.workers_per_trial > 1 else SegmentRun(shared, World(device=_device()))
        )
        self._runner.begin(decode_assignment(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._runner.begin(decode_assignment(new_config))
        return True

    def step(self) -> dict[str, Any]:
        report = self._runner.advance()
        # At the top the trial is over; at any other end of a segment the controller may continue it in this slot.
        over = report.status == "failed" or (report.status == "reached" and report.done.amount >= self._top)
        return {REPORT: report, "done": over}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune asks for none: checkpoints are the trial's own, told in the journal."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See ``save_checkpoint``."""

    def cleanup(self) -> None:
        if isinstance(self._runner, Group):
            self._runner.close()


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
