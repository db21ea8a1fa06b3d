"""What a journal says, added up event by event: all that strategies and budgets look at."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable

from methods.training.clock import Fidelity
from orchestrator.engine.events import (
    Calibrated,
    Chosen,
    Distilled,
    Ended,
    Ensembled,
    EnsembleTested,
    Event,
    Extended,
    Forgotten,
    Opened,
    Predicted,
    Proposed,
    Reached,
    Scored,
    SearchEnded,
    SegmentStarted,
    Selected,
    Started,
    Step,
    Tested,
    Trained,
    TrialStarted,
)
from orchestrator.engine.journal import JournalError
from orchestrator.engine.records import TestScore, Trial
from orchestrator.engine.totals import Totals


class History:
    """The state of a study. Nothing here is known that the events do not tell.

    Attributes:
        events: all of them, in order.
        started: the first event.
        proposed: what completed the study, where it named no methods.
        trials_wanted: trials that the search is to start, or None where no budget counts trials.
        trials: by key, in the order started.
        search_ended: why and when the search ended, or None.
        finals, chosen, calibrated, predicted, tests: the finalists and how they are judged, the winner, how its confidences are
            calibrated, its predicted test score, the test scores.
        ensembled, distilled, steps: the ensemble of finalists, the one model that learnt from it, and where either is exported
            the test scores on the way to it.
        now: time of the newest event, the only clock that a decision may read.
        elapsed: seconds that the study has run, without the time that it lay killed.
        totals: of the trials that have ended.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = []
        self.started: Started | None = None
        self.proposed: Proposed | None = None
        self.trials_wanted: int | None = None
        self.trials: dict[str, Trial] = {}
        self._curves: dict[str, list[Trained]] = {}
        self.search_ended: SearchEnded | None = None
        self.finals: Selected | None = None
        self.chosen: Chosen | None = None
        self.calibrated: Calibrated | None = None
        self.ensembled: Ensembled | None = None
        self.distilled: Distilled | None = None
        self.predicted: Predicted | None = None
        self.tests: list[TestScore] = []
        self.steps: tuple[Step, ...] = ()
        self.now = 0.0
        self._before = 0.0
        self._opened = 0.0
        self._search: list[Trial] = []
        self._running: dict[str, Trial] = {}
        self._scores: dict[Fidelity, dict[str, float]] = defaultdict(dict)
        # At each rung the scores in order, best first, of equals the earlier trial.
        self._order: dict[Fidelity, list[tuple[float, int]]] = defaultdict(list)
        self.totals = Totals()
        for number, event in enumerate(events, start=1):
            try:
                self.add(event)
            except KeyError as error:
                raise JournalError(f"the journal is damaged at event {number}: it tells of {error}, never started") from None

    def add(self, event: Event) -> None:
        """Takes the next event in."""
        if isinstance(event, Opened):
            self._before, self._opened = self.elapsed, event.command
            for trial in self.open():
                self._back_to_checkpoint(trial)
        self.events.append(event)
        self.now = max(self.now, event.time)
        match event:
            case Started():
                self.started, self.trials_wanted = event, event.trials
            case Proposed():
                self.proposed = event
            case Extended():
                # More trials reopen the selection; what was tested stays on record until it is tested anew.
                self.trials_wanted, self.search_ended = event.trials, None
                self.finals, self.chosen, self.calibrated, self.predicted, self.tests = None, None, None, None, []
                self.ensembled, self.distilled, self.steps = None, None, ()
            case TrialStarted():
                trial = self.trials[event.spec.key] = self._running[event.spec.key] = Trial(event.spec)
                if event.spec.parent is not None:
                    trial.inherited = self.trials[event.spec.parent].kept[0]
                    trial.epochs, trial.kept = trial.inherited, (trial.inherited, 0.0)
                if event.spec.purpose == "search":
                    self._search.append(trial)
            case SegmentStarted():
                trial = self.trials[event.segment.key]
                trial.segment = event.segment
                self._back_to_checkpoint(trial)
            case Trained():
                trial = self.trials[event.key]
                trial.epochs, trial.seconds = event.epoch, event.seconds
                curve = self._curves.setdefault(event.key, [])
                # An epoch that a trial fails in may be told twice: as it ended, and with the time that was lost after it.
                while curve and curve[-1].epoch >= event.epoch:
                    curve.pop()
                curve.append(event)
            case Scored():
                trial = self.trials[event.key]
                trial.rungs[:] = [r for r in trial.rungs if r.epoch < event.rung.epoch] + [event.rung]
                if trial.spec.purpose == "search" and math.isfinite(event.rung.value):
                    self._enter(event.at, trial, event.rung.value)
            case Reached():
                trial = self.trials[event.key]
                trial.done, trial.checkpoint, trial.segment = event.done, event.checkpoint, None
                trial.kept = trial.epochs, trial.seconds
            case Ended():
                trial = self.trials[event.key]
                trial.status, trial.reason, trial.segment = event.status, event.reason, None
                if self._running.pop(event.key, None) is not None:
                    self.totals.add(trial)
            case Forgotten():
                self.trials[event.key].checkpoint = None
            case SearchEnded():
                self.search_ended = event
            case Selected():
                self.finals = event
            case Chosen():
                self.chosen = event
            case Calibrated():
                self.calibrated = event
            case Ensembled():
                self.ensembled = event
            case Distilled():
                self.distilled = event
            case Predicted():
                self.predicted = event
            case Tested():
                self.tests.append(event.score)
            case EnsembleTested():
                self.steps = event.gains

    def _enter(self, at: Fidelity, trial: Trial, value: float) -> None:
        """A trial's score at a rung, its first there or a newer one."""
        scores, order = self._scores[at], self._order[at]
        if trial.spec.key in scores:
            order.remove((-scores[trial.spec.key], trial.spec.trial))
        scores[trial.spec.key] = value
        bisect.insort(order, (-value, trial.spec.trial))

    def _back_to_checkpoint(self, trial: Trial) -> None:
        """What was trained after the newest checkpoint is trained again: its epochs did not happen."""
        trial.epochs, trial.seconds = trial.kept
        curve = self._curves.get(trial.spec.key, [])
        while curve and curve[-1].epoch > trial.epochs:
            curve.pop()

    @property
    def selected(self) -> list[int] | None:
        """The finalists' trial numbers."""
        return None if self.finals is None else self.finals.trials

    @property
    def elapsed(self) -> float:
        return self._before + (max(self.now - self._opened, 0.0) if self._opened else 0.0)

    def search(self) -> list[Trial]:
        """The search's trials in the order started."""
        return self._search

    def open(self) -> list[Trial]:
        """Trials with a segment under way, or waiting for a slot."""
        return [trial for trial in self._running.values() if trial.segment is not None]

    def undecided(self, search: bool = True) -> list[Trial]:
        """Trials of the search (or of what comes after it) that have ended a segment and wait, in the order started."""
        return [t for t in self._running.values() if t.undecided and (t.spec.purpose == "search") == search]

    def scores_at(self, at: Fidelity) -> dict[str, float]:
        """Finite scores of the search at a rung, by key, each trial's newest."""
        return self._scores[at]

    def place_at(self, at: Fidelity, key: str) -> int:
        """How many trials of the search have a better score at a rung than this one, which has one there."""
        return bisect.bisect_left(self._order[at], (-self._scores[at][key], self.trials[key].spec.trial))

    def epochs_trained(self) -> float:
        """Epochs that all trials, of the search and after it, have trained."""
        return self.totals.epochs.total(trial.own_epochs for trial in self._running.values())

    def busy_seconds(self) -> float:
        """Seconds in which all trials, of the search and after it, kept a slot busy."""
        return self.totals.busy.total(trial.busy for trial in self._running.values())

    def search_effort(self) -> float:
        """What the search's trials have cost together, as ``Trial.effort``."""
        return self.totals.effort.total(t.effort for t in self._running.values() if t.spec.purpose == "search")

    def longest_scoring(self) -> float:
        """Seconds of the longest newest scoring of a trial of the search."""
        running = (trial.scoring for trial in self._running.values() if trial.spec.purpose == "search")
        return max(self.totals.scoring, *running, 0.0)

    def curve(self, key: str) -> list[Trained]:
        """A trial's epochs in order; what was trained again after a resume stands once."""
        return self._curves.get(key, [])
