"""Ray Tune's side of the engine: its searcher and scheduler only pass on what the controller says."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.plan import ResourcePlan
from orchestrator.engine.controller import Controller
from orchestrator.engine.records import SlotSetup
from orchestrator.engine.slot import Slot, decode_report, encode_assignment


@contextmanager
def _kept(controller: Controller) -> Iterator[None]:
    """Tune makes a stack trace of whatever is raised under it, so the error itself is kept for the person."""
    try:
        yield
    except Exception as error:
        controller.error = error
        raise


class _Unsaved:
    """Tune pickles searcher and scheduler for its own restore, which is not used: nothing of them is kept."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """Tune's searcher interface over a controller: a Tune trial is what a slot does with one trial at a stretch."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(metric=None, mode=None)
        self.controller = controller
        self.keys: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        assignment = self.controller.next_assignment()
        if assignment is None:
            return Searcher.FINISHED if self.controller.over else None
        self.keys[trial_id] = assignment.spec.key
        return encode_assignment(assignment)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            with _kept(self.controller):
                self.controller.lost(self.keys[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """The journal is the one owner of a study's state; see ``orchestrator.engine.journal``."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Tune's scheduler interface over a controller."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self.controller = controller

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = decode_report(result)
        assert report is not None, "a slot reports after each epoch"
        with _kept(self.controller):
            return TrialScheduler.CONTINUE if self.controller.receive(report) else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        report = decode_report(result)
        if report is not None:
            with _kept(self.controller):
                self.controller.receive(report)


def run_slots(controller: Controller, shared: SlotSetup, plan: ResourcePlan) -> None:
    """Runs the segments in the plan's warm slots until none is left. Returns early on an interrupt; the journal goes on."""
    if controller.over:
        return
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(plan.slots + 1)
    slot = tune.with_parameters(Slot, shared=shared, plan=plan)
    scratch = tempfile.mkdtemp(prefix="labelwise-tune-")
    try:
        tune.Tuner(
            tune.with_resources(slot, PlacementGroupFactory([plan.trial_resources])),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_Searcher(controller),
                scheduler=_Scheduler(controller),
                max_concurrent_trials=plan.slots + (1 if plan.fills_the_machine else 0),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    except TuneError:
        if controller.error is not None:
            raise controller.error from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
