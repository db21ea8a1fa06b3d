from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.submit import EXCLUDES, check_upload, study_entrypoint, submit, submit_command, upload_size

PYTHON = shlex.quote(sys.executable)


def test_every_argument_survives_the_shell() -> None:
    overrides = ["name=it's; rm -rf $HOME", "*.batch_size=256", 'search={"a b": 1}']
    line = study_entrypoint("my study.yaml", out="runs/a b", overrides=overrides)
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    expected = ["python", "-m", "orchestrator", "run", "my study.yaml", "--out", "runs/a b"]
    assert shown.stdout.splitlines() == [*expected, *(word for each in overrides for word in ("--set", each))]
    allowed = study_entrypoint("s.yaml", imports=["own.rules"])
    assert allowed == "python -m orchestrator run s.yaml --import own.rules"
    with pytest.raises(ClusterError, match="key=value, got 'epochs'"):
        study_entrypoint("s.yaml", overrides=["epochs"])


def test_what_travels(tmp_path: Path) -> None:
    for name, size in [
        ("study.yaml", 10),
        ("code/a.py", 20),
        ("code/__pycache__/a.pyc", 1000),
        (".git/objects/x", 1000),
        (".venv/lib/x", 1000),
        ("runs/one/journal", 1000),
        (".mypy_cache/x", 1000),
        ("data/big", 1000),
        (".gitignore", 5),
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("data\n")
    total, entries = upload_size(tmp_path)
    assert total == 35
    assert dict(entries) == {"study.yaml": 10, "code": 20, ".gitignore": 5}
    assert upload_size(tmp_path, [*EXCLUDES, "code"])[0] == 15


def test_too_much_is_refused_before_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("cluster.submit"), "UPLOAD_LIMIT", 3 * 1024**2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.npz").write_bytes(bytes(4 * 1024**2))
    with pytest.raises(
        ClusterError, match=r"at most 3 MiB .* has 4 MiB \(largest: images 4 MiB\); list .*\.rayignore"
    ) as caught:
        submit_command("true", "127.0.0.1:1", working_dir=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ClusterError, match="must be a folder"):
        check_upload(tmp_path / "images" / "a.npz")


def test_the_study_must_travel_with_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    study = tmp_path / "study.yaml"
    with pytest.raises(ClusterError, match="no study file"):
        submit(study, "127.0.0.1:1", working_dir=tmp_path)
    study.write_text("data: digits\n")
    with pytest.raises(ClusterError, match="must lie inside the working directory"):
        submit(study, "127.0.0.1:1", working_dir=tmp_path / "inside")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:1"])
def test_nobody_takes_the_job(no_ray_settings: Path, address: str) -> None:
    with pytest.raises(ClusterError, match="no Ray cluster answers at") as caught:
        submit_command("true", address)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.ray
def test_a_command_runs_and_its_log_comes_back(with_token, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the address given counts, not this one
    log: list[str] = []
    job = submit_command(f'{PYTHON} -c "print(6 * 7)"', with_token.dashboard, echo=log.append)
    assert (job.status, job.exit_code, job.succeeded, job.address) == ("SUCCEEDED", 0, True, with_token.dashboard)
    assert "42\n" in "".join(log)
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.slow
@pytest.mark.ray
def test_a_failing_command_by_the_head_address(with_token) -> None:  # type: ignore[no-untyped-def]
    job = submit_command(f'{PYTHON} -c "raise SystemExit(3)"', with_token.address, echo=lambda text: None)
    assert (job.status, job.exit_code, job.succeeded) == ("FAILED", 3, False)
    assert job.message
    assert "\n" not in job.message


@pytest.mark.slow
@pytest.mark.ray
def test_a_study_travels_with_its_code(with_token, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "orchestrator"
    package.mkdir()
    (package / "__main__.py").write_text("import sys\nprint('ARGUMENTS', sys.argv[1:], open(sys.argv[2]).read())\n")
    (tmp_path / "my study.yaml").write_text("data: digits")
    (tmp_path / "runs").mkdir()
    log: list[str] = []
    job = submit(
        tmp_path / "my study.yaml", with_token.dashboard, working_dir=tmp_path, overrides=["a=it's"], out="o", echo=log.append
    )
    assert job.succeeded, "".join(log)
    assert """ARGUMENTS ['run', 'my study.yaml', '--out', 'o', '--set', "a=it's"] data: digits""" in "".join(log)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
def test_interrupting_stops_the_job_in_order(with_token) -> None:  # type: ignore[no-untyped-def]
    script = """
import time
try:
    print("working")
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    print("last checkpoint written")
"""
    log: list[str] = []

    def echo(text: str) -> None:
        log.append(text)
        if "working" in text and "".join(log).count("working") == 1:
            raise KeyboardInterrupt

    job = submit_command(f"{PYTHON} -c {shlex.quote(script)}", with_token.dashboard, echo=echo)
    assert (job.status, job.exit_code) == ("STOPPED", 130)
    assert "last checkpoint written" in "".join(log)
