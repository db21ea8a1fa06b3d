"""The events of a run folder as rows, for people and programs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.engine.journal import read_journal
from orchestrator.folder import RunFolder

FIELDS = ("time", "event", "trial", "purpose", "status", "reason")
"""The stable fields of a row; more may be added at the end."""


def event_rows(target: str | Path) -> list[dict[str, Any]]:
    """One row an event of the run folder ``target``, in order; None where a field does not apply.

    Raises:
        UserError: no run folder, or a damaged journal.
    """
    specs: dict[str, Any] = {}
    rows = []
    for event in read_journal(RunFolder.open(target).storage):
        spec = getattr(event, "spec", None)
        if spec is not None:
            specs[spec.key] = spec
        # An event tells of a training itself, or through a part of it that does.
        parts: tuple[Any, ...] = (event, spec, getattr(event, "segment", None), getattr(event, "score", None))
        key = next((part.key for part in parts if hasattr(part, "key")), None)
        told = specs.get(key) if key is not None else None
        row = {
            "time": getattr(event, "time", None),
            "event": event.event,
            "trial": told.trial if told is not None else getattr(event, "trial", None),
            "purpose": told.purpose if told is not None else None,
            "status": getattr(event, "status", None),
            "reason": getattr(event, "reason", None) or None,
        }
        rows.append(row)
    return rows


def event_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned text, a line an event, without the columns that are empty throughout."""
    shown = [name for name in FIELDS if any(row[name] is not None for row in rows)]
    cells = [["" if row[name] is None else _text(name, row[name]) for name in shown] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(shown))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _text(name: str, value: Any) -> str:
    if name != "time":
        return str(value)
    return datetime.fromtimestamp(value).isoformat(sep=" ", timespec="seconds")
