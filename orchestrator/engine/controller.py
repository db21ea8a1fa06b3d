"""The course of a study: a list of segments that the strategy, and after it the selection, choose from the history.

An outcome and the decisions that follow from it are one turn, journaled at once before anything outside acts on them: a kill
loses turns, never half of one. ``Controller`` knows no Ray and no storage; it is driven by
``engine.tune`` in warm slots, by ``engine.simulation`` without training.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from methods.batch import seed_of
from orchestrator.budgets.contract import Ledger
from orchestrator.engine.events import (
    Ended,
    Event,
    Forgotten,
    Reached,
    Scored,
    SearchEnded,
    SegmentStarted,
    Trained,
    TrialStarted,
)
from orchestrator.engine.health import HealthLimits
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Configuration, Report, Segment, Status, Trial, TrialSpec
from orchestrator.engine.selection import Finals, contenders
from orchestrator.engine.turn import Sink, Turns
from orchestrator.strategies.contract import Continue, Decision, Done, Fork, Problem, Start, Stop, Strategy, Wait
from search_spaces.domains import UserError

FAILURES = 5
"""Trials a method that may all fail before a search without a number of trials gives up."""


class StrategyError(UserError):
    """A strategy of the user's own that breaks its contract."""


@dataclass(frozen=True)
class Course:
    """What decides a study's course, fixed before it begins.

    Attributes:
        problem, strategy: what is searched, and how.
        finals: the selection after the search.
        ledger: what may be spent.
        health: who is stopped by a health signal.
    """

    problem: Problem
    strategy: Strategy
    finals: Finals
    ledger: Ledger
    health: HealthLimits


class Controller:
    """A study under way.

    Args:
        course: what decides.
        history: what has happened; segments that were under way are taken up again.
        ahead: segments kept decided at any time: the slots and one more, so that no slot waits.
        write: journals events, all or none.
        forget: deletes a checkpoint that nothing needs any more.
        sinks: told of every event.
        clock: seconds since 1970.

    Attributes:
        error: what was raised while a slot's report was taken, for whoever drives the slots.
    """

    def __init__(
        self,
        course: Course,
        history: History,
        ahead: int,
        write: Callable[..., None],
        forget: Callable[[str], None],
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.course, self.history, self.ahead = course, history, ahead
        self._turns = Turns(history, write, forget, sinks, clock)
        self._queue: deque[Segment] = deque(t.segment for t in history.open() if t.segment is not None)
        self._running: dict[str, Segment] = {}
        # Search trials whose checkpoint may lie in storage: few, so that no end of a trial looks at all of them.
        self._held = {t.spec.key: t for t in history.search() if t.checkpoint is not None}
        self.error: Exception | None = None
        with self._turns.turn():
            self._fill()

    def tell(self, *events: Event) -> None:
        """A turn of these events alone."""
        with self._turns.turn():
            self._turns.add(*events)

    @property
    def over(self) -> bool:
        """Whether nothing is left to train."""
        return not self._queue and not self._running

    def next_assignment(self) -> Assignment | None:
        """The next segment for a free slot, or None while all wait for an end."""
        if not self._queue:
            return None
        segment = self._queue.popleft()
        self._running[segment.key] = segment
        spec = self.history.trials[segment.key].spec
        first = spec.purpose == "fold" and spec.fold == spec.repeat == 0
        illustrate = spec.origin == "defaults" if spec.purpose == "search" else first
        return Assignment(spec, segment, illustrate)

    def receive(self, report: Report) -> bool:
        """Takes a slot's report. Returns whether the slot goes on with this trial."""
        with self._turns.turn():
            return self._receive(report)

    def _receive(self, report: Report) -> bool:
        segment = self._running.get(report.key)
        if segment is None:
            # Its trial ended meanwhile, and nobody will want what the slot has just written.
            if report.checkpoint is not None and self.history.trials[report.key].status != "running":
                self._turns.drop(report.checkpoint)
            return False
        if report.status == "failed":
            if report.train_seconds > self.history.trials[report.key].seconds:
                # What it trained before it failed is spent all the same.
                self._turns.add(Trained(report.key, report.epoch, report.train_seconds, dict(report.parts)))
            self._end(report.key, "failed", report.reason)
            self._fill()
            return False
        trial = self.history.trials[report.key]
        before = trial.checkpoint
        over = report.status == "reached" and report.done.amount >= self.course.problem.top.amount
        # At the top reaching and ending are one: a kill must not come between them.
        self._turns.add(*_events_of(report, segment), *([Ended(report.key, "finished", "")] if over else []))
        if before is not None and before != trial.checkpoint:
            self._drop(before)
        if trial.spec.purpose == "search" and trial.checkpoint is not None:
            self._held[report.key] = trial
        if report.status == "running":
            reason = self._ill(trial)
            if reason:
                self._end(report.key, "pruned", reason)
            self._fill()
            return report.key in self._running
        del self._running[report.key]
        if over and trial.spec.purpose == "search":
            self._let_go(self._promising())
        self._fill()
        return self._goes_on_in_place(report.key, segment)

    def lost(self, key: str) -> None:
        """A worker died under the trial."""
        if key in self._running:
            with self._turns.turn():
                self._end(key, "failed", "its worker died (out of memory, or killed); see the Ray logs")
                self._fill()

    def _goes_on_in_place(self, key: str, held: Segment) -> bool:
        """Whether the slot that holds the trial was to go on to just where the strategy now continues it."""
        segment = next((s for s in self._queue if s.key == key), None)
        if segment is None or held.onward[:1] != (segment.to,) or held.onward[1:] != segment.onward:
            return False
        self._queue.remove(segment)
        self._running[key] = segment
        return True

    def _ill(self, trial: Trial) -> str:
        """Why a health signal stops the trial, or nothing. A method's defaults are seen at full length."""
        if trial.spec.purpose != "search" or trial.spec.origin == "defaults":
            return ""
        return self.course.health.judge(trial.spec.method, self.history.curve(trial.spec.key))

    def _fill(self) -> None:
        """Decides on segments until enough are at hand. Called at a slot's words only, so no decision depends on timing."""
        self._stop_what_is_not_paid_for()
        while len(self._queue) + len(self._running) < self.ahead:
            if self.history.selected is not None:
                if not self._select_on():
                    return
            elif not self._carry_out(self.course.strategy.next(self.course.problem, self.history)):
                return

    def _select_on(self) -> bool:
        """A finalist's next segment; its trainings stop at every rung, for their curves and checkpoints, and always go on."""
        problem = self.course.problem
        for trial in self.history.undecided(search=False):
            to, *onward = problem.after(trial)
            self._go_on(Segment(trial.spec.key, to, trial.checkpoint, tuple(onward)))
            return True
        following = self.course.finals.next(self.history, self.course.ledger)
        if following is None:
            return False
        spec = following.spec
        # What goes on from the search's own end has nothing left to train: it is judged.
        to, *onward = problem.rungs_of(spec.method) if following.start is None else [problem.top]
        self._start(spec, Segment(spec.key, to, following.start, tuple(onward)))
        return True

    def _stop_what_is_not_paid_for(self) -> None:
        if self.history.search_ended is not None:
            return
        spent = self.course.ledger.must_stop(self.history)
        if spent is not None:
            self._end_search(f"the budget of {spent} is spent")
        elif self.history.trials_wanted is None and self._nothing_works():
            self._end_search("every trial has failed")

    def _nothing_works(self) -> bool:
        """Whether every trial has failed so far, often enough that no more time should go into others."""
        totals = self.history.totals
        return totals.failed == totals.ended >= FAILURES * len(self.course.problem.methods)

    def _carry_out(self, decision: Decision) -> bool:
        """Lets a decision of the search count; False where the controller must wait for a slot's word."""
        problem = self.course.problem
        if isinstance(decision, Start | Fork) and not problem.may_start(self.history):
            decision = Done()
        match decision:
            case Start():
                self._start(self._spec(decision.configuration, None), Segment("", decision.to, None, decision.onward))
            case Fork():
                parent = self._waiting(decision.key, "Fork")
                values = {**parent.spec.values, **decision.changes}
                spec = self._spec(Configuration(parent.spec.method, values, "forked", parent.spec.encoder), parent.spec.key)
                self._start(spec, Segment("", decision.to, parent.checkpoint, decision.onward))
            case Continue():
                trial = self._waiting(decision.key, "Continue")
                reason = self._ill(trial)
                if reason:
                    self._end(decision.key, "pruned", reason)
                    return True
                self._go_on(Segment(decision.key, decision.to, trial.checkpoint, decision.onward))
            case Stop():
                stopped = self.history.trials.get(decision.key)
                if stopped is None or stopped.status != "running":
                    raise StrategyError(f"Stop must name a trial that has not ended, got {decision.key!r}")
                self._end(decision.key, "pruned", decision.reason)
            case Wait() if self.history.open():
                return False
            case Wait():
                raise StrategyError(
                    f"{type(self.course.strategy).__name__} waits although no segment is under way; it must start, continue or"
                    " stop a trial, or be done"
                )
            case Done():
                if self.history.open():
                    return False
                spent = self.course.ledger.spent_out(self.history)
                self._end_search(f"the budget of {spent} is spent" if spent else decision.reason)
        return True

    def _waiting(self, key: str, decision: str) -> Trial:
        trial = self.history.trials.get(key)
        if trial is None or not trial.undecided or trial.checkpoint is None:
            raise StrategyError(
                f"{decision} must name a trial that has ended a segment and waits, got {key!r}; see history.undecided()"
            )
        return trial

    def _spec(self, configuration: Configuration, parent: str | None) -> TrialSpec:
        number = len(self.history.search())
        seed = seed_of(self.course.problem.seed, "trial", number)
        method, values, origin = configuration.method, configuration.values, configuration.origin
        encoder = configuration.encoder
        return TrialSpec(f"{number:04d}", number, method, values, seed, origin=origin, parent=parent, encoder=encoder)

    def _start(self, spec: TrialSpec, segment: Segment) -> None:
        segment = replace(segment, key=spec.key)
        self._turns.add(TrialStarted(spec), SegmentStarted(segment))
        self._queue.append(segment)

    def _go_on(self, segment: Segment) -> None:
        """A trial that has begun goes before those that have not, as it does in the slot that holds it."""
        self._turns.add(SegmentStarted(segment))
        self._queue.appendleft(segment)

    def _end_search(self, reason: str) -> None:
        """Ends the search: trials that are not at the top stay where they are."""
        for trial in [*self.history.open(), *self.history.undecided()]:
            if trial.spec.purpose == "search":
                self._end(trial.spec.key, "pruned", reason)
        self._turns.add(SearchEnded(reason), self.course.finals.select(self.history))
        self._let_go(set(self.history.selected or ()))

    def _end(self, key: str, status: Status, reason: str) -> None:
        trial = self.history.trials[key]
        self._running.pop(key, None)
        self._queue = deque(segment for segment in self._queue if segment.key != key)
        self._turns.add(Ended(key, status, reason))
        if trial.spec.purpose == "search" and self.history.finals is None:
            self._let_go(self._promising())

    def _promising(self) -> set[int]:
        """Numbers of the trials that would be finalists if the search ended now: their models may serve as their folds'."""
        held, finals = [trial for trial in self._held.values() if trial.status == "finished"], self.course.finals
        return {trial.spec.trial for trial in contenders(held, finals.most, finals.selection.baseline)}

    def _let_go(self, promising: set[int]) -> None:
        """Deletes the checkpoints of ended search trials but the ``promising``, and those that a fork still starts from."""
        for key, trial in list(self._held.items()):
            if trial.status == "running" or trial.checkpoint is None:
                continue
            if trial.spec.trial not in promising and not self._wanted(trial.checkpoint):
                self._turns.drop(trial.checkpoint)
                self._turns.add(Forgotten(key))
                del self._held[key]

    def _drop(self, checkpoint: str) -> None:
        """Deletes a checkpoint unless a segment that is decided on starts from it."""
        if not self._wanted(checkpoint):
            self._turns.drop(checkpoint)

    def _wanted(self, checkpoint: str) -> bool:
        return checkpoint in {t.segment.start for t in self.history.open() if t.segment is not None}


def _events_of(report: Report, segment: Segment) -> list[Event]:
    """What a report tells, in order; at a segment's end all of it at once."""
    parts, counts = dict(report.parts), list(report.pseudo_labels)
    events: list[Event] = [Trained(report.key, report.epoch, report.train_seconds, parts, counts, report.steps)]
    if report.rung is not None:
        events.append(Scored(report.key, report.rung, segment.to))
    if report.checkpoint is not None:
        events.append(Reached(report.key, report.done, report.checkpoint))
    return events
