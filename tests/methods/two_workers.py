"""Runs a test file's ``cases(world)`` in two real processes joined by gloo, and returns what each of them found."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def run(file: str, folder: Path, seconds: float = 240) -> list[dict[str, Tensor]]:
    """The results of ``cases(world)`` of ``file`` on worker 0 and on worker 1. Fails with the worker's own message."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"log{rank}" for rank in range(2)]
    workers = []
    for rank in range(2):
        with logs[rank].open("wb") as log:
            command = [sys.executable, __file__, file, str(rank), str(folder)]
            workers.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    end = time.monotonic() + seconds
    try:
        for worker in workers:
            worker.wait(max(0.0, end - time.monotonic()))
            if worker.returncode:
                break
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [w.returncode for w in workers] == [0, 0], "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"found{rank}", weights_only=True) for rank in range(2)]


def main(file: str, rank: int, folder: Path) -> None:
    from methods.world import World

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(runpy.run_path(file)["cases"](World(rank, 2)), folder / f"found{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
