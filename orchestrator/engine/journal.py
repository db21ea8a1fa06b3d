"""The journal: what happened, one JSON line an event, in numbered parts of a storage. It is the only state of a study.

Events are written before anything acts on them. The newest part is written anew, whole, with every event, until it is full;
so a kill loses what had not been acted on and never half a line, and a storage need not be able to append.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from cluster.storage import Storage
from orchestrator.engine.events import FORMAT, Event, Started, decode, encode
from search_spaces.domains import UserError

PREFIX = "journal/"
PART_BYTES = 64 * 1024
"""A part that has grown beyond this is full."""


class JournalError(UserError):
    """A journal that cannot be read or written."""


def _part(number: int) -> str:
    return f"{PREFIX}{number:06d}.jsonl"


class Journal:
    """An open journal. Only one process may write it; a second is refused while the first lives."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._held = ExitStack()
        self._held.enter_context(storage.hold(PREFIX + "writer"))
        # Only now: what another writer was about to add is there.
        parts = storage.list(PREFIX)
        self._number = int(parts[-1].removeprefix(PREFIX).partition(".")[0]) + 1 if parts else 0
        self._lines = bytearray()

    def write(self, *events: Event) -> None:
        """All of these events or none."""
        if len(self._lines) > PART_BYTES:
            self._number, self._lines = self._number + 1, bytearray()
        added = "".join(encode(event) + "\n" for event in events).encode()
        self._lines += added
        try:
            # The view is released at once: a bytearray that is looked at cannot grow.
            with memoryview(self._lines) as view:
                self.storage.put(_part(self._number), view)
        except BaseException:
            del self._lines[-len(added) :]
            raise

    def close(self) -> None:
        """Lets another process write. Idempotent."""
        self._held.close()


def read_journal(storage: Storage) -> Iterator[Event]:
    """The events in order. Raises JournalError where there are none, or they are damaged or of another format."""
    parts = storage.list(PREFIX)
    if not parts:
        raise JournalError(f"{storage.address} is not a run folder: it has no journal; give the folder that 'run' printed")
    for part in parts:
        for number, line in enumerate(storage.get(part).splitlines(), start=1):
            try:
                event = decode(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise JournalError(f"{storage.address}/{part} is damaged at line {number}: {error}") from None
            if isinstance(event, Started) and event.format != FORMAT:
                raise JournalError(
                    f"{storage.address} has format {event.format}, and this version reads format {FORMAT}; run the study anew"
                )
            yield event
