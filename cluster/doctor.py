"""Examining a machine: what it can run, what is missing, and what to do about it. Takes a few seconds and changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.address import find_address, reach
from cluster.errors import ClusterError, one_line
from cluster.machine import free_shared_memory, usable_cpus, usable_memory

Status = Literal["ok", "warn", "fail"]

_DISTRIBUTION = "labelwise"
# The packages people ask about; the rest of the requirements is checked too, but shown only when something is wrong.
_PACKAGES = ("torch", "torchvision", "ray", "optuna", "learn2learn", "tensorboard")
_GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing examined.

    Attributes:
        name: what was examined.
        status: "ok", "warn" (a study runs, but not well) or "fail" (it does not run).
        value: what was found.
        remedy: what to do; empty where nothing is missing.
    """

    name: str
    status: Status
    value: str
    remedy: str = ""


def examine(address: str | None = None, *, runs: Path | str = "runs") -> list[Finding]:
    """Examines this machine, and the cluster at ``address`` or RAY_ADDRESS if there is one.

    Args:
        address: as connect() takes it, or a dashboard's ``http://`` address.
        runs: the folder that run folders will be written to; it need not exist.
    """
    return [
        _python(),
        *package_findings(),
        *extra_findings(),
        *_hardware(),
        *folder_findings(Path(runs)),
        cluster_finding(address),
    ]


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    version = ".".join(str(part) for part in sys.version_info[:3])
    try:
        needed = importlib.metadata.metadata(_DISTRIBUTION)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        needed = ""
    if SpecifierSet(needed or "").contains(version):
        return Finding("Python", "ok", version)
    return Finding("Python", "fail", f"{version}, needed {needed}", "make a virtual environment with a newer Python")


def package_findings() -> Iterator[Finding]:
    """Versions against our own distribution's requirements, by metadata alone: importing learn2learn takes seconds."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = list(_PACKAGES)  # run from a copied working directory: presence is all that can be told
    needs = [need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in sorted(needs, key=lambda need: (need.name not in _PACKAGES, need.name)):
        remedy = f"pip install '{need.name}{need.specifier}', or install the lock file"
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(need.name, "fail", "not installed", remedy)
            continue
        if not need.specifier.contains(version, prereleases=True):
            yield Finding(need.name, "fail", f"{version}, needed {need.specifier}", remedy)
        elif need.name in _PACKAGES:
            yield Finding(need.name, "ok", version)


def extra_findings() -> Iterator[Finding]:
    """Which optional extras of our distribution are installed, by metadata alone; studies run without them."""
    from packaging.requirements import Requirement

    try:
        needs = [need for need in map(Requirement, importlib.metadata.requires(_DISTRIBUTION) or []) if need.marker is not None]
        extras = importlib.metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in sorted(set(extras) - {"dev"}):
        found: list[str] = []
        missing: list[str] = []
        for need in needs:
            assert need.marker is not None
            if not need.marker.evaluate({"extra": extra}) or need.marker.evaluate({"extra": ""}):
                continue
            try:
                version = importlib.metadata.version(need.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(f"{need.name} not installed")
                continue
            fits = need.specifier.contains(version, prereleases=True)
            (found if fits else missing).append(f"{need.name} {version}" + ("" if fits else f", needed {need.specifier}"))
        remedy = f"where it is wanted: pip install '{_DISTRIBUTION}[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}", "ok", "; ".join([*missing, *found]), remedy)


def _hardware() -> Iterator[Finding]:
    cpus, memory = usable_cpus(), usable_memory()
    yield Finding("CPUs", "ok", str(cpus))
    if memory >= 4 * _GIB:
        yield Finding("memory", "ok", _size(memory))
    else:
        yield Finding("memory", "warn", _size(memory), "4 GiB or more are comfortable; use one slot and a small batch_size")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch import", "fail", one_line(error), "reinstall torch for this machine, see pytorch.org")
        return
    if torch.cuda.is_available():
        kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        shown = ", ".join(f"{card.name} {_size(card.total_memory)}" for card in cards)
        yield Finding("GPUs", "ok", f"{len(cards)} ({shown}; {kind}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'})")
    elif Path("/dev/nvidia0").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
        yield Finding(
            "GPUs",
            "warn",
            f"a GPU that torch cannot use; torch is {built}",
            "install a torch build for this driver, see pytorch.org",
        )
    else:
        yield Finding("GPUs", "ok", "none, studies run on the CPU")
    able = torch.cpu.get_capabilities()
    unit = next((unit for unit in ("amx_bf16", "avx512_bf16", "bf16") if able.get(unit)), None)
    width = torch.backends.cpu.get_cpu_capability()
    if unit:
        yield Finding("bf16 on the CPU", "ok", f"in hardware ({unit}; {width})")
    else:
        yield Finding("bf16 on the CPU", "warn", f"emulated ({width})", "train in fp32 on this CPU: emulated bf16 is slower")


def folder_findings(runs: Path) -> Iterator[Finding]:
    free = free_shared_memory()
    if free is None:
        yield Finding("shared memory", "ok", "no /dev/shm; Ray uses the temporary folder")
    elif free >= _GIB:
        yield Finding("shared memory", "ok", f"{_size(free)} free in /dev/shm")
    else:
        remedy = "start the container with --shm-size=2g, or free /dev/shm; until then data sets are kept on disk"
        yield Finding("shared memory", "warn", f"{_size(free)} free in /dev/shm", remedy)
    folder = runs.resolve()
    while not folder.exists():
        folder = folder.parent
    yield _writable(runs, folder)
    yield disk_finding("disk for runs", folder)
    # Ray keeps sockets there, whose paths may have 107 characters, about 75 of which it uses itself.
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(str(temporary)) > 30:
        yield Finding("Ray's folder", "warn", str(temporary), "Ray's socket paths may grow too long; set RAY_TMPDIR=/tmp")
    elif temporary.is_dir():
        yield disk_finding("disk for Ray", temporary)
    else:
        yield Finding("Ray's folder", "fail", f"{temporary} is no folder", "set RAY_TMPDIR to a folder that exists")


def _writable(runs: Path, folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("runs folder", "fail", f"{folder} is a file", "name a folder for the runs")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = (error.strerror or "cannot be written").lower()
        return Finding("runs folder", "fail", f"{runs}: {why}", "choose a folder you may write to with --out")
    return Finding("runs folder", "ok", f"{runs} can be written")


def disk_finding(name: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    value = f"{_size(usage.free)} free at {folder}"
    if usage.free < _GIB // 2:
        return Finding(name, "fail", value, "free at least 2 GiB, or use another disk")
    if usage.free < 2 * _GIB:
        return Finding(name, "warn", value, "checkpoints and logs want 2 GiB; free some space")
    if usage.free < usage.total // 20:
        return Finding(name, "warn", value, "Ray stops writing objects to a disk that is 95% full; free some space")
    return Finding(name, "ok", value)


def cluster_finding(address: str | None) -> Finding:
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return Finding("cluster", "ok", "none named, studies run on this machine")
    try:
        where = find_address(address)
        token = reach(where)
    except ClusterError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding("cluster", "fail", what, remedy or "see --address")
    how = f"token from {token.source}" if token else "no token asked for"
    return Finding("cluster", "ok", f"{where} answers ({how})")


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 1024**2:.0f} MiB"
