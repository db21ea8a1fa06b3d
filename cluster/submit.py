"""Submitting a study, or any command, as a Ray job; following its log to the end; stopping it gently on Ctrl-C.

The working directory travels to the cluster, the data does not: a study names data that the cluster's nodes can read, or
small data inside the working directory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.address import find_address, reach
from cluster.connect import ENVIRONMENT, set_authentication
from cluster.errors import ClusterError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

UPLOAD_LIMIT = 100 * 1024**2  # bytes that Ray's dashboard takes as one working directory
STOP_SECONDS = 60  # between the stop signal and the kill: time for the last checkpoint

# What a study never needs on the cluster; .gitignore and .rayignore files count as well.
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "runs",
    "__pycache__",
    "*.pyc",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "node_modules",
)

_JOB_ENVIRONMENT = {
    **ENVIRONMENT,
    "PYTHONUNBUFFERED": "1",
    # `ray job stop` sends SIGTERM and kills after 3 seconds. SIGINT lets Tune and the study end in order.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
}


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: Ray's submission id, for ``ray job logs ID``.
        address: the dashboard that took it.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of the job's command once it ended, 130 when stopped; None while it runs.
        message: Ray's words on a failure, one line.
    """

    id: str
    address: str
    status: str
    exit_code: int | None
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the job ended well."""
        return self.status == "SUCCEEDED"


def study_entrypoint(
    study: Path | str, *, out: str | None = None, overrides: Sequence[str] = (), imports: Sequence[str] = ()
) -> str:
    """The shell command that runs a study inside the job's working directory, every argument quoted.

    Args:
        study: the study file, relative to the working directory.
        out: the run folder, on storage that outlives the job.
        overrides: ``key=value`` settings, as ``--set`` takes them.
        imports: modules whose code the study may use, as ``--import`` takes them; they lie in the working directory.
    """
    for override in overrides:
        if "=" not in override:
            raise ClusterError(f"an override is written key=value, got {override!r}")
    words = ["python", "-m", "orchestrator", "run", str(study)]
    words += ["--out", out] if out is not None else []
    words += [word for module in imports for word in ("--import", module)]
    return shlex.join([*words, *(word for override in overrides for word in ("--set", override))])


def upload_size(working_dir: Path, excludes: Sequence[str] = EXCLUDES) -> tuple[int, Counter[str]]:
    """Bytes that would travel, and the bytes of each entry at the top. Ray's own walk, so its ignore rules count.

    Ray compresses the upload; pictures hardly shrink, so plain sizes are what is compared with the limit.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: Counter[str] = Counter()

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(working_dir).parts[0]] += path.stat().st_size

    _dir_travel(working_dir, [_get_excludes(working_dir, list(excludes))], add, include_gitignore=True)
    return sum(sizes.values()), sizes


def check_upload(working_dir: Path, excludes: Sequence[str] = EXCLUDES) -> int:
    """Bytes that would travel.

    Raises:
        ClusterError: no such directory, or more than UPLOAD_LIMIT.
    """
    if not working_dir.is_dir():
        raise ClusterError(f"the working directory must be a folder, got {working_dir}")
    total, entries = upload_size(working_dir, excludes)
    if total > UPLOAD_LIMIT:
        largest = ", ".join(f"{name} {size / 1024**2:.0f} MiB" for name, size in entries.most_common(3))
        raise ClusterError(
            f"Ray takes at most {UPLOAD_LIMIT // 1024**2} MiB of working directory, "
            f"{working_dir} has {total / 1024**2:.0f} MiB (largest: {largest}); "
            "list what the job does not need in .rayignore and keep data where the nodes can read it"
        )
    return total


@contextmanager
def _address_argument_wins() -> Iterator[None]:
    """Ray lets RAY_ADDRESS and RAY_API_SERVER_ADDRESS override an address that was given; here the given one counts."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _client(address: str | None) -> JobSubmissionClient:
    # First, because it sets the level of its own loggers to INFO when it is imported; their lines would mix with the job's.
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    where = find_address(address or os.environ.get("RAY_API_SERVER_ADDRESS") or "auto")
    token = reach(where)
    headers = {"Authorization": f"Bearer {token.value}"} if token else None
    if token and where.kind != "http":
        set_authentication({"RAY_AUTH_MODE": "token"})  # Ray asks the head node for its dashboard's address
    with _address_argument_wins():
        try:
            return JobSubmissionClient(str(where), headers=headers)
        except (RuntimeError, ValueError, OSError) as error:
            raise ClusterError(f"the cluster at {where} takes no jobs: {one_line(error)}; is its dashboard running?") from error


def submit(
    study: Path | str,
    address: str | None,
    *,
    working_dir: Path | str = ".",
    out: str | None = None,
    overrides: Sequence[str] = (),
    imports: Sequence[str] = (),
    excludes: Sequence[str] = EXCLUDES,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
    echo: Callable[[str], None] | None = None,
) -> Job:
    """Runs a study file as a Ray job. Arguments as in study_entrypoint and submit_command.

    Raises:
        ClusterError: no such file, or it lies outside the working directory; and what submit_command raises.
    """
    file, folder = Path(study), Path(working_dir)
    if not file.is_file():
        raise ClusterError(f"no study file {file}; name a YAML file")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ClusterError(
            f"the study must lie inside the working directory {folder.resolve()} to travel with it, got {file.resolve()}"
        )
    command = study_entrypoint(file.resolve().relative_to(folder.resolve()), out=out, overrides=overrides, imports=imports)
    return submit_command(
        command, address, working_dir=folder, excludes=excludes, environment=environment, wait=wait, echo=echo
    )


def submit_command(
    command: str,
    address: str | None,
    *,
    working_dir: Path | str | None = None,
    excludes: Sequence[str] = EXCLUDES,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
    echo: Callable[[str], None] | None = None,
) -> Job:
    """Runs a shell command as a Ray job.

    Args:
        command: for the job's shell, quoted.
        address: ``http://host:8265``, ``host:6379``, ``auto``; None takes RAY_API_SERVER_ADDRESS, RAY_ADDRESS or auto.
        working_dir: what travels; None sends nothing.
        environment: variables of the job.
        wait: follow the log to the end. Ctrl-C then stops the job in order (a second one leaves it to itself).
        echo: takes pieces of the log; None writes them to standard output.

    Raises:
        ClusterError: unreachable, token missing or wrong, upload too large, or the cluster refuses the job.
    """
    runtime: dict[str, object] = {"env_vars": {**_JOB_ENVIRONMENT, **(environment or {})}}
    if working_dir is not None:
        folder = Path(working_dir).resolve()
        check_upload(folder, excludes)
        runtime |= {"working_dir": str(folder), "excludes": list(excludes)}
    client = _client(address)
    try:
        job_id = client.submit_job(entrypoint=command, runtime_env=runtime)
    except (RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"the cluster at {client.get_address()} refused the job: {one_line(error)}") from error
    if wait:
        _follow(client, job_id, echo or _write)
    return _job(client, job_id)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _job(client: JobSubmissionClient, job_id: str) -> Job:
    info = client.get_job_info(job_id)
    status = str(info.status.value)
    codes = {"SUCCEEDED": 0, "STOPPED": 130, "FAILED": info.driver_exit_code or 1}
    message = "" if status == "SUCCEEDED" else one_line(info.message or "")
    return Job(job_id, client.get_address(), status, codes.get(status), message)


def _follow(client: JobSubmissionClient, job_id: str, echo: Callable[[str], None]) -> None:
    """Echoes the log until the job has ended; every character once, although a broken stream starts again at the top."""
    shown = 0
    stopping = False

    async def tail() -> None:
        nonlocal shown
        seen = 0
        async with aclosing(client.tail_job_logs(job_id)) as pieces:
            async for piece in pieces:
                fresh = piece[max(0, shown - seen) :]
                seen += len(piece)
                shown = max(shown, seen)
                if fresh:
                    echo(fresh)

    silent = 0  # times in a row that the cluster did not say how the job is
    while True:
        try:
            broken = False
            try:
                asyncio.run(tail())
            except (RuntimeError, OSError):
                broken = True  # the stream ended early; whether the job lives on is asked next
            try:
                if client.get_job_status(job_id).is_terminal():
                    return
                silent = 0
            except OSError as error:
                silent += 1
                if silent == 20:
                    raise ClusterError(
                        f"lost the cluster at {client.get_address()}; the job may still run, see 'ray job status {job_id}'"
                    ) from error
            time.sleep(1.0 if broken or silent else 0.1)
        except KeyboardInterrupt:
            if stopping:
                echo(f"\nleaving; the job is being stopped, see 'ray job status {job_id}'\n")
                return
            stopping = True
            echo(f"\nstopping the job in order, at most {STOP_SECONDS} seconds; press Ctrl-C again to leave\n")
            client.stop_job(job_id)
