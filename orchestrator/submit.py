"""A study as a Ray job: the study file travels with the code, and runs by the same words as here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.submit import submit as submit_job
from orchestrator.study import find_study, load_study


def submit(study: str, address: str, settings: Sequence[str], out: Path | None) -> int:
    """Submits the study and follows its log. Returns the exit code: 0 only where the study finished.

    Raises:
        UserError: the study is not valid; it is checked here before anything is sent.
    """
    load_study(study, settings)
    overrides = [word for setting in settings for word in ("--set", setting)]
    return submit_job(find_study(study), address, overrides=[*overrides, *(["--out", str(out)] if out else [])])
