from __future__ import annotations

from pathlib import Path

import pytest

from cluster import machine


def test_a_container_quota_cuts_the_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.usable_cpus() == 8
    for line, cpus in [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]:
        (tmp_path / "cpu.max").write_text(line)
        assert machine.usable_cpus() == cpus


def test_a_container_limit_cuts_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    whole = machine.usable_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_memory() == whole
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine.usable_memory() == 1_000_000


@pytest.mark.parametrize(
    ("memory", "shared", "store"),
    [(10, 100, 3 * 1024), (1000, 100, 8 * 1024), (10, 1, 819), (10, None, 3 * 1024), (10, 0.05, 3 * 1024), (0.1, 1, 100)],
)
def test_object_store_size(monkeypatch: pytest.MonkeyPatch, memory: float, shared: float | None, store: int) -> None:
    monkeypatch.setattr(machine, "usable_memory", lambda: int(memory * 1024**3))
    monkeypatch.setattr(machine, "free_shared_memory", lambda: None if shared is None else int(shared * 1024**3))
    assert machine.object_store_bytes() // 1024**2 == store
