from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from email.message import Message
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import Finding, examine


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def test_this_machine_can_run_studies(no_ray_settings: Path, tmp_path: Path) -> None:
    before = set(sys.modules)
    findings = by_name(examine(runs=tmp_path / "not" / "yet"))
    assert {
        "Python",
        "torch",
        "ray",
        "optuna",
        "learn2learn",
        "CPUs",
        "memory",
        "GPUs",
        "bf16 on the CPU",
        "shared memory",
    } <= set(findings)
    assert [finding for finding in findings.values() if finding.status == "fail"] == []
    assert all(finding.remedy for finding in findings.values() if finding.status != "ok")
    assert findings["torch"].value == importlib.metadata.version("torch")
    assert findings["cluster"].value == "none named, studies run on this machine"
    assert not (tmp_path / "not").exists()
    assert "learn2learn" not in set(sys.modules) - before


def test_an_old_or_missing_package(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch>=99", "no-such-package>=1", "pytest; extra == 'dev'"]
    )
    torch, missing = sorted(doctor.package_findings(), key=lambda finding: finding.name, reverse=True)
    assert (torch.status, missing.status, missing.value) == ("fail", "fail", "not installed")
    assert "needed >=99" in torch.value
    assert "pip install 'no-such-package>=1'" in missing.remedy


def test_the_optional_extras(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [
        "torch>=2",
        *("packaging>=1; extra == 'here'", "no-such-package>=1; extra == 'gone'", "packaging>=99; extra == 'old'"),
        *("packaging>=1; extra == 'both'", "no-such-package>=1; extra == 'both'", "pytest; extra == 'dev'"),
    ]
    known = Message()
    for extra in ("dev", "here", "gone", "old", "both"):
        known["Provides-Extra"] = extra
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: known)
    found = by_name(list(doctor.extra_findings()))
    version = importlib.metadata.version("packaging")
    assert {name: finding.value for name, finding in found.items()} == {
        "extra both": f"no-such-package not installed; packaging {version}",
        "extra gone": "no-such-package not installed",
        "extra here": f"packaging {version}",
        "extra old": f"packaging {version}, needed >=99",
    }
    assert {finding.status for finding in found.values()} == {"ok"}, "studies run without them"
    assert found["extra here"].remedy == ""
    assert found["extra gone"].remedy.endswith("pip install 'labelwise[gone]'")


def test_folders_that_cannot_take_runs(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert by_name(list(doctor.folder_findings(file)))["runs folder"].status == "fail"

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    finding = by_name(list(doctor.folder_findings(tmp_path)))["runs folder"]
    assert (finding.status, "permission denied" in finding.value) == ("fail", True)


@pytest.mark.parametrize(("free", "total", "status"), [(0.1, 10, "fail"), (1, 10, "warn"), (10, 1000, "warn"), (10, 100, "ok")])
def test_disk_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, total: float, status: str) -> None:
    usage = shutil._ntuple_diskusage(int(total * 1024**3), 0, int(free * 1024**3))  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert doctor.disk_finding("disk", tmp_path).status == status


def test_a_small_shared_memory_and_a_long_ray_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "free_shared_memory", lambda: 64 * 1024**2)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 40)
    findings = by_name(list(doctor.folder_findings(tmp_path)))
    assert (findings["shared memory"].status, findings["Ray's folder"].status) == ("warn", "warn")


def test_an_address_where_nobody_answers(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor.cluster_finding("127.0.0.1:1")
    assert (finding.status, finding.value) == ("fail", "no Ray cluster answers at 127.0.0.1:1 (connection refused)")
    assert finding.remedy.startswith("check the address")
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "127.0.0.1:1")
    assert doctor.cluster_finding(None) == finding


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_answers(with_token) -> None:  # type: ignore[no-untyped-def]
    for address in (with_token.address, with_token.dashboard):
        finding = doctor.cluster_finding(address)
        assert (finding.status, finding.value) == ("ok", f"{address} answers (token from {with_token.home}/.ray/auth_token)")
