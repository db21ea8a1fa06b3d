"""The one error of this package."""

from __future__ import annotations


class ClusterError(ValueError):
    """Something a person can mend, in one line: what is wrong, where, and what to do."""


def one_line(text: object) -> str:
    """The message of a foreign error on one line, at most 300 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:297] + "..."
