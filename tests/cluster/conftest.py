"""A real head node of its own: free ports, own folders, own token; ended by its process group and nothing else."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Head:
    """A running head node with 4 CPUs and a token."""

    address: str
    dashboard: str
    home: Path
    temporary: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    base = Path(tempfile.mkdtemp(prefix="lwh", dir="/tmp"))  # short: Ray's socket paths have a limit
    home = base / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"]
    ports = dict(
        zip([*names, "runtime-env-agent-port", "node-manager-port", "object-manager-port"], free_ports(8), strict=True)
    )
    bin_folder = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(bin_folder / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={base / 't'}"]
    command += ["--object-store-memory=100000000", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = base / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=base, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['dashboard-port']}", home, base / "t")
    finally:
        process.terminate()  # it ends its children in order; what is left of its group is killed
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=15)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def no_ray_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A person who has no token and no Ray settings; gives back the empty home folder."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def with_token(no_ray_settings: Path, head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """A person who has the head's token where Ray looks for it."""
    monkeypatch.setenv("HOME", str(head.home))
    return head
