"""learn2learn, imported where it is first needed, since that takes seconds."""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType


def learn2learn(part: str) -> ModuleType:
    """The module ``learn2learn.part``.

    Its dependency gym prints a notice about itself at import, which tells users of this package nothing.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("gym_notices.notices").notices.clear()
    return importlib.import_module(f"learn2learn.{part}")
