"""One outcome and all that is decided from it, journaled at once before anything outside acts on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.engine.events import Event
from orchestrator.engine.history import History

Sink = Callable[[Event, History], None]
"""Told of every event after it is journaled, with a history that holds its whole turn: the live table, TensorBoard."""


class Turns:
    """Writes a study's events turn by turn: a kill loses turns, never a part of one.

    Args:
        history: events are added to it as they are decided, so that the next decision of the turn knows of them.
        write: journals events, all or none.
        forget: deletes a checkpoint that nothing needs any more.
        sinks: told of every event.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        history: History,
        write: Callable[..., None],
        forget: Callable[[str], None],
        sinks: Sequence[Sink],
        clock: Callable[[], float],
    ) -> None:
        self.history = history
        self._write, self._forget, self._sinks, self._clock = write, forget, sinks, clock
        self._events: list[Event] = []
        self._dropped: list[str] = []

    def add(self, *events: Event) -> None:
        """Events of the turn under way."""
        now = self._clock()
        for event in events:
            stamped = replace(event, time=now)
            self._events.append(stamped)
            self.history.add(stamped)

    def drop(self, checkpoint: str) -> None:
        """A checkpoint that nothing needs after this turn: it is deleted once the journal says so."""
        self._dropped.append(checkpoint)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is added within is journaled at its end, also where a decision raises: the outcome before it counts."""
        try:
            yield
        except Exception:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        events, self._events = self._events, []
        dropped, self._dropped = self._dropped, []
        if events:
            self._write(*events)
        for event in events:
            for sink in self._sinks:
                sink(event, self.history)
        for checkpoint in dropped:
            self._forget(checkpoint)
