"""The resource plan: how many trials run at a time and what each gets. A pure function of the machines and the wishes.

On GPUs the scarce resource is the GPU: one worker per GPU unless a share is asked for. On CPUs it is the CPU, and an
unasked plan runs half as many trials at a time as there are CPUs, but at least two where there are two: few trials at a
time leave the search more to learn from, and on 2 CPUs two trials of one thread trained about 1.27 times as many images
a second as one trial of two threads (small ResNets of width 16 and 32, fp32, batch 256; two short runs each on a machine
busy with other work, which threads that wait for each other suffer from most, so an idle machine gains less).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.machine import Node

# What the Tune actor of a trial on several workers asks for. It only waits for its workers; with Ray's default of a whole
# CPU the actors could take the CPUs that their own workers wait for, for ever.
DRIVER_CPUS = 0.001


@dataclass(frozen=True)
class ResourcePlan:
    """What runs at a time, and what Ray is asked for.

    Attributes:
        nodes: machines of the plan.
        total_cpus, total_gpus: what they have.
        slots: trials at a time.
        workers_per_trial: workers that train one trial together.
        cpus_per_worker: Ray's CPU request of a worker: its threads, less where drivers need room or GPUs outnumber CPUs.
        gpus_per_worker: Ray's GPU request of a worker; 0 on CPUs.
        threads_per_worker: torch threads of a worker.
    """

    nodes: int
    total_cpus: float
    total_gpus: float
    slots: int
    workers_per_trial: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int

    @property
    def trial_resources(self) -> dict[str, float]:
        """For Tune: what the actor of one slot asks for; it is the worker itself where a trial has one worker."""
        return self.worker_resources if self.workers_per_trial == 1 else {"CPU": DRIVER_CPUS}

    @property
    def worker_resources(self) -> dict[str, float]:
        """For Train: what every worker asks for."""
        request = {"CPU": self.cpus_per_worker}
        return {**request, "GPU": self.gpus_per_worker} if self.gpus_per_worker else request

    @property
    def fills_the_machine(self) -> bool:
        """Whether Ray's resources alone keep one more slot from starting; drivers of several workers ask for too little."""
        if self.workers_per_trial > 1:
            return False
        share, total = (
            (self.gpus_per_worker, self.total_gpus) if self.gpus_per_worker else (self.cpus_per_worker, self.total_cpus)
        )
        return (self.slots + 1) * share > total

    def describe(self) -> str:
        """One line for people, shown before the start."""
        machine = _count(self.total_cpus, "CPU") + (f" and {_count(self.total_gpus, 'GPU')}" if self.total_gpus else "")
        place = f"on {machine}" if self.nodes == 1 else f"on {self.nodes} nodes with {machine}"
        share = _count(self.threads_per_worker, "thread")
        if self.gpus_per_worker:
            share = f"{_count(self.gpus_per_worker, 'GPU')} and {share}"
        each = f"{share} each" if self.workers_per_trial == 1 else f"{self.workers_per_trial} workers each, {share} per worker"
        return f"{_count(self.slots, 'trial')} at a time {place}: {each}"


def plan_resources(
    nodes: Sequence[Node],
    *,
    workers_per_trial: int = 1,
    slots: int | None = None,
    gpus_per_worker: float | None = None,
    threads_per_worker: int | None = None,
    trials: int | None = None,
) -> ResourcePlan:
    """Divides the machines among trials, so that Ray can place every worker whatever order it places them in.

    Args:
        nodes: the machines, as Connection.nodes has them.
        workers_per_trial: workers that train one trial together; they may stand on different nodes.
        slots: trials at a time; None computes it.
        gpus_per_worker: None takes one where there are GPUs; 0 stays on the CPUs; a share such as 0.5 lets trials of one
            worker share a GPU; several must be whole.
        threads_per_worker: torch threads; None divides the CPUs.
        trials: no more slots than this many trials can fill.

    Raises:
        ClusterError: a wish is not a positive number, or asks for more than the machines have.
    """
    for name, value in [("workers_per_trial", workers_per_trial), ("slots", slots), ("threads_per_worker", threads_per_worker)]:
        if value is not None and value < 1:
            raise ClusterError(f"{name} must be at least 1, got {value}")
    if trials is not None and trials < 1:
        raise ClusterError(f"trials must be at least 1, got {trials}")
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    share = _gpu_share(gpus_per_worker, gpus, workers_per_trial)
    room = [_workers_that_fit(node, share, threads_per_worker or 1) for node in nodes]
    _check_room(sum(room), workers_per_trial, slots, threads_per_worker or 1, cpus, gpus, share)
    if slots is None:
        slots = sum(room) // workers_per_trial
        if not share:
            slots = min(slots, max(2, int(cpus) // (2 * workers_per_trial)))
        if trials is not None:
            slots = min(slots, trials)
    workers = slots * workers_per_trial
    threads = threads_per_worker or _threads(nodes, room, workers, share)
    if not share:
        room = [_workers_that_fit(node, 0.0, threads) for node in nodes]
    drivers = DRIVER_CPUS * slots if workers_per_trial > 1 else 0.0
    # Ray may put all drivers on one node, and as many workers beside them as fit there: every node must bear both.
    spare = [(node.cpus - drivers) / min(workers, fit) for node, fit in zip(nodes, room, strict=True) if fit]
    return ResourcePlan(
        nodes=len(nodes),
        total_cpus=cpus,
        total_gpus=gpus,
        slots=slots,
        workers_per_trial=workers_per_trial,
        cpus_per_worker=max(0, math.floor(min(*spare, threads) * 100 + 1e-6)) / 100,
        gpus_per_worker=share,
        threads_per_worker=threads,
    )


def _count(amount: float, noun: str) -> str:
    return f"{amount:g} {noun}" + ("" if amount == 1 else "s" if amount > 1 or amount == 0 else "")


def _gpu_share(wish: float | None, gpus: float, workers_per_trial: int) -> float:
    """GPUs per worker; 0 for a plan on CPUs."""
    if wish is None:
        return 1.0 if gpus >= 1 else 0.0
    if wish < 0 or not math.isfinite(wish) or (wish > 1 and wish != int(wish)):
        raise ClusterError(f"gpus_per_worker must be 0, a share of one GPU or a whole number, got {wish:g}")
    if 0 < wish < 1 and workers_per_trial > 1:
        raise ClusterError(
            f"workers of one trial cannot share a GPU, got gpus_per_worker {wish:g} with {workers_per_trial} workers; use 1"
        )
    if wish and 1 // wish > 1000:
        raise ClusterError(f"gpus_per_worker must be 0 or at least 0.001, got {wish:g}")
    return float(wish)


def _workers_that_fit(node: Node, share: float, threads: int) -> int:
    """Workers of that size which fit on the node."""
    if not share:
        return int(node.cpus) // threads
    if share < 1:
        return int(node.gpus) * int(1 / share + 1e-9)  # a worker's share lies on one GPU
    return int(node.gpus) // int(share)


def _threads(nodes: Sequence[Node], room: Sequence[int], workers: int, share: float) -> int:
    """The most threads per worker with which ``workers`` workers fit."""
    if share:
        return max(1, min(int(node.cpus) // min(workers, fit) for node, fit in zip(nodes, room, strict=True) if fit))
    most = max(int(node.cpus) for node in nodes)
    return next(t for t in range(most, 0, -1) if sum(_workers_that_fit(node, 0.0, t) for node in nodes) >= workers)


def _check_room(
    fit: int, workers_per_trial: int, slots: int | None, threads: int, cpus: float, gpus: float, share: float
) -> None:
    wanted = workers_per_trial * (slots or 1)
    if wanted <= fit:
        return
    trials = f"{_count(slots, 'trial')} at a time with " if slots else "one trial with "
    each = _count(share, "GPU") if share else _count(threads, "thread")
    have = f"{gpus:g} GPUs" if share else f"{cpus:g} CPUs"
    fewer = "fewer workers or trials at a time" if slots and slots > 1 else "fewer workers"
    raise ClusterError(
        f"{trials}{_count(workers_per_trial, 'worker')} of {each} needs room for {wanted}, there is room for {fit} ({have}); "
        f"ask for {fewer}, or join a larger cluster"
    )
