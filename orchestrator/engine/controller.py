"""The course of a study: which spec comes next, who stops early, who is retrained. Every event is journaled before it counts.

``Sweep`` knows no Ray; ``run_sweep`` drives it by Ray Tune, through the searcher and scheduler below, which only pass on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.plan import ResourcePlan
from methods.batch import seed_of
from orchestrator.engine.health import HealthLimits
from orchestrator.engine.journal import Asked, Checkpoint, Ended, Event, History, Journal, Scored, Selected, Trained
from orchestrator.engine.records import Purpose, Report, SlotSetup, Status, Trial, TrialSpec
from orchestrator.engine.slot import Slot, decode_report, encode_job
from orchestrator.strategies.asha_stopping import AshaStopping
from orchestrator.strategies.sampler import Search
from orchestrator.study import Selection
from search_spaces.space import Suggestion

Sink = Callable[[Event, History], None]
"""Told of every event after it is journaled: the live table, TensorBoard."""


class Controller:
    """A study under way.

    Args:
        search, rungs: what is tried, and who goes on.
        selection: how many finalists, with how many seeds.
        refits: names of the methods that are also trained on the whole budget.
        journal, history: where events go, and what they add up to; a history with trials is continued.
        ahead: jobs kept asked at any time: the slots and one more, so that no slot waits.
        seed: of the study.
        sinks: told of every event.
        stops: who ends early because its training is ill; None for nobody.
    """

    def __init__(
        self,
        search: Search,
        rungs: AshaStopping,
        selection: Selection,
        refits: frozenset[str],
        journal: Journal,
        history: History,
        ahead: int,
        seed: int,
        sinks: Sequence[Sink] = (),
        stops: HealthLimits | None = None,
    ) -> None:
        self.search, self.rungs, self.selection, self.refits = search, rungs, selection, refits
        self.journal, self.history, self.ahead, self.seed, self.sinks = journal, history, ahead, seed, sinks
        self.stops = stops or HealthLimits({}, {})
        self._ready: deque[TrialSpec] = deque()
        self._running: set[str] = set()
        self._continue()
        self._fill()

    def tell(self, event: Event) -> None:
        """Journals an event, then lets it count."""
        self.journal.write(event)
        self.history.add(event)
        for sink in self.sinks:
            sink(event, self.history)

    def _continue(self) -> None:
        """Takes up a history: ended trials teach the search, unfinished jobs are ready from their checkpoints."""
        for trial in self.history.trials.values():
            spec = trial.spec
            if spec.purpose == "search":
                for rung in trial.rungs:
                    self.rungs.judge(spec.key, rung.epoch, rung.value, exempt=True)
                # In the order asked, ended or not: the sampler weighs trials by their order.
                if trial.status == "running":
                    self.search.enter(spec.key, Suggestion(spec.method, spec.values))
                    for rung in trial.rungs:
                        self.search.report(spec.key, rung.epoch, rung.value)
                else:
                    self.search.replay([trial])
            if trial.status != "running":
                continue
            checkpoint = trial.checkpoint if trial.checkpoint and self._file(trial.checkpoint).is_file() else None
            self._ready.append(TrialSpec(spec.key, spec.trial, spec.method, spec.values, spec.seed, spec.purpose, checkpoint))

    def _file(self, key: str) -> Path:
        return self.journal.path.parent / key

    def _fill(self) -> None:
        """Asks for new jobs until enough are at hand. Called at ends only, so that what is asked never depends on timing."""
        while len(self._ready) + len(self._running) < self.ahead and len(self.history.search()) < self.history.trials_wanted:
            number = len(self.history.search())
            key = f"{number:04d}"
            suggestion = self.search.ask(key)
            seed = seed_of(self.seed, "trial", number)
            self._add(TrialSpec(key, number, suggestion.method, suggestion.values, seed))
        if not self._ready and not self._running:
            if self.history.selected is None:
                self._select()
            self._retrain()

    def _add(self, spec: TrialSpec) -> None:
        self.tell(Asked(spec))
        self._ready.append(spec)

    def _select(self) -> None:
        finished = [t for t in self.history.search() if t.status == "finished" and t.value is not None]
        finished.sort(key=lambda t: (-(t.value or 0.0), t.seconds, t.spec.trial))
        self.tell(Selected([t.spec.trial for t in finished[: self.selection.top]]))

    def _retrain(self) -> None:
        """The finalists' jobs that are not yet asked: fresh seeds on the same labels, then the whole budget."""
        by_number = {t.spec.trial: t.spec for t in self.history.search()}
        purposes: tuple[Purpose, ...] = ("retrain", "refit")
        for purpose in purposes:
            for number in self.history.selected or []:
                origin = by_number[number]
                if purpose == "refit" and origin.method not in self.refits:
                    continue
                for repeat in range(self.selection.repeats(purpose)):
                    key = f"{number:04d}-{purpose}-{repeat}"
                    if key not in self.history.trials:
                        seed = seed_of(self.seed, "retrain", repeat)
                        self._add(TrialSpec(key, number, origin.method, origin.values, seed, purpose))

    def next_job(self) -> TrialSpec | None:
        """The next spec to start, or None while all wait for an end."""
        if not self._ready:
            return None
        spec = self._ready.popleft()
        self._running.add(spec.key)
        return spec

    @property
    def over(self) -> bool:
        return not self._ready and not self._running

    def receive(self, report: Report) -> bool:
        """Takes a slot's report; returns whether the trial ends here."""
        if report.key not in self._running:
            return True
        if report.status == "failed":
            self._end(report.key, "failed", report.reason)
            return True
        parts, counts = dict(report.parts), list(report.pseudo_labels)
        self.tell(Trained(report.key, report.epoch, report.train_seconds, parts, counts, report.steps))
        trial = self.history.trials[report.key]
        reason = ""
        if report.rung is not None:
            self.tell(Scored(report.key, report.rung))
            reason = self._judge(trial, report)
        if trial.spec.purpose == "search" and not self._is_default(trial):
            # After a resume the journal may know later epochs, which are trained again.
            curve = [event for event in self.history.curve(report.key) if event.epoch <= report.epoch]
            reason = reason or self.stops.judge(trial.spec.method, curve)
        if report.checkpoint is not None:
            self.tell(Checkpoint(report.key, report.epoch, report.checkpoint))
        if report.status == "finished":
            self._end(report.key, "finished", "")
        elif reason:
            self._end(report.key, "pruned", reason)
        return report.status == "finished" or bool(reason)

    def _judge(self, trial: Trial, report: Report) -> str:
        if trial.spec.purpose != "search":
            return ""
        assert report.rung is not None
        self.search.report(report.key, report.epoch, report.rung.value)
        return self.rungs.judge(report.key, report.epoch, report.rung.value, exempt=self._is_default(trial))

    def _is_default(self, trial: Trial) -> bool:
        """Whether the trial is a method's defaults, which always train to the end."""
        return trial.spec.trial < len(self.search.space.methods)

    def lost(self, key: str) -> None:
        """A worker died under the spec."""
        if key in self._running:
            self._end(key, "failed", "its worker died (out of memory, or killed); see the Ray logs")

    def _end(self, key: str, status: Status, reason: str) -> None:
        trial = self.history.trials[key]
        self._running.discard(key)
        self.tell(Ended(key, status, reason))
        if trial.spec.purpose == "search":
            self.search.tell(key, status, trial.value)
            if trial.checkpoint is not None:
                # Finalists are retrained from the start, so a search trial's weights are of no more use.
                self._file(trial.checkpoint).unlink(missing_ok=True)
        self._fill()


class _Unsaved:
    """Tune pickles searcher and scheduler for its own restore, which is not used: nothing of them is kept."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_Unsaved, Searcher):
    """Tune's searcher interface over a sweep."""

    def __init__(self, sweep: Controller) -> None:
        super().__init__(metric=None, mode=None)
        self.sweep = sweep
        self.keys: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        spec = self.sweep.next_job()
        if spec is None:
            return Searcher.FINISHED if self.sweep.over else None
        self.keys[trial_id] = spec.key
        return encode_job(spec)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            self.sweep.lost(self.keys[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """The journal is the one owner of a study's state; see ``orchestrator.engine.journal``."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


class _Scheduler(_Unsaved, FIFOScheduler):
    """Tune's scheduler interface over a sweep."""

    def __init__(self, sweep: Controller) -> None:
        super().__init__()
        self.sweep = sweep

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = decode_report(result)
        assert report is not None, "a slot reports after each epoch"
        return TrialScheduler.STOP if self.sweep.receive(report) else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        report = decode_report(result)
        if report is not None:
            self.sweep.receive(report)


def run_slots(sweep: Controller, shared: SlotSetup, plan: ResourcePlan) -> None:
    """Runs the sweep's jobs in the plan's warm slots until it is over. Returns early on an interrupt; the journal goes on."""
    if sweep.over:
        return
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(plan.slots + 1)
    slot = tune.with_parameters(Slot, shared=shared, plan=plan)
    tuner = tune.Tuner(
        tune.with_resources(slot, PlacementGroupFactory([plan.trial_resources])),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=_Searcher(sweep),
            scheduler=_Scheduler(sweep),
            max_concurrent_trials=plan.slots + (1 if plan.fills_the_machine else 0),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(Path(shared.folder) / ".ray"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    tuner.fit()
