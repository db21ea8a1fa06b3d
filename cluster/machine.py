"""What this machine really offers a process: containers and affinity masks often allow less than the hardware has."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")
_MIB = 1024**2


@dataclass(frozen=True)
class Node:
    """One machine as Ray counts it.

    Attributes:
        cpus: logical CPUs, >= 0 (a head node that runs no work has 0).
        gpus: GPUs, >= 0.
        memory: bytes of main memory; 0 when unknown.
    """

    cpus: float
    gpus: float = 0.0
    memory: int = 0


def _first_number(path: Path) -> int | None:
    """The first field of a cgroup file, None when there is no such file or no limit ("max")."""
    try:
        field = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(field) if field.isdigit() else None


def usable_cpus() -> int:
    """CPUs this process may use, at least 1: the affinity mask, cut by the container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_number(_CGROUP / "cpu.max")
    if quota is not None:
        period = int((_CGROUP / "cpu.max").read_text().split()[1])
        cpus = min(cpus, quota // period)
    return max(1, cpus)


def usable_memory() -> int:
    """Bytes of main memory this process may use: the machine's, cut by the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_first_number(_CGROUP / "memory.max"), _first_number(_CGROUP / "memory" / "memory.limit_in_bytes")]
    return min([total, *(limit for limit in limits if limit)])


def free_shared_memory() -> int | None:
    """Free bytes of /dev/shm, where Ray keeps its object store; None where there is no such folder."""
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None


def object_store_bytes() -> int:
    """A size for the local object store: at most 30% of memory and 80% of the free shared memory, between 100 MiB and 8 GiB.

    It holds one decoded copy of the data; pages that stay unused cost nothing. A shared memory below 100 MiB (a container
    started with defaults) does not shrink it: Ray then uses the temporary folder, and `examine` warns.
    """
    size = min(usable_memory() * 3 // 10, 8 * 1024 * _MIB)
    free = free_shared_memory()
    if free is not None and free >= 125 * _MIB:
        size = min(size, free * 8 // 10)
    return max(size, 100 * _MIB)


def gpu_count() -> int:
    """GPUs torch can use here (CUDA or ROCm)."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def this_machine() -> Node:
    """This machine as one node."""
    return Node(cpus=usable_cpus(), gpus=gpu_count(), memory=usable_memory())
