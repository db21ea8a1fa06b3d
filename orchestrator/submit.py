"""A study as a Ray job: the study file travels with the code, and runs by the same words as here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.submit import submit as submit_job
from orchestrator.study import StudyError, find_study, load_study


def submit(study: str, address: str, settings: Sequence[str], out: Path | None, imports: Sequence[str] = ()) -> int:
    """Submits the study and follows its log. Returns the exit code: 0 only where the study finished.

    Raises:
        UserError: the study is not valid; it is checked here before anything is sent.
    """
    checked = load_study(study, settings, imports)
    if checked.data == study:
        raise StudyError(f"submit sends a study file, got the images {study}; write one that says 'data: {study}'")
    job = submit_job(find_study(study), address, out=str(out) if out else None, overrides=settings, imports=imports)
    if not job.succeeded:
        print(f"labelwise: job {job.id} on {job.address} ended as {job.status}: {job.message}", file=sys.stderr)
    return 0 if job.succeeded else job.exit_code or 1
