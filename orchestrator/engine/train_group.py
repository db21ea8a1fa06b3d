"""A worker group for trials on several workers: a persistent Ray Train group that takes one segment after another."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.plan import ResourcePlan
from methods.world import World
from orchestrator.engine.records import Assignment, Report, SlotSetup
from orchestrator.engine.trial import SegmentRun

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class _Command:
    kind: Literal["begin", "advance", "stop"]
    given: Assignment | None = None


class _Mailbox:
    """Passes commands to the workers of a group and their reports back, each numbered; waits without polling."""

    def __init__(self, setup: list[Any], workers: int) -> None:
        self._setup, self._workers = setup, workers
        # The newest command alone: the next one is sent when all workers have replied to it.
        self._number, self._command = -1, _Command("stop")
        self._replies: list[Report | None] = []
        self._changed = asyncio.Condition()

    async def setup(self) -> list[Any]:
        return self._setup

    async def send(self, command: _Command) -> None:
        async with self._changed:
            self._number, self._command, self._replies = self._number + 1, command, []
            self._changed.notify_all()

    async def command(self, number: int) -> _Command:
        async with self._changed:
            await self._changed.wait_for(lambda: self._number >= number)
            return self._command

    async def reply(self, report: Report | None) -> None:
        async with self._changed:
            self._replies.append(report)
            self._changed.notify_all()

    async def replies(self) -> list[Report | None]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._replies) == self._workers)
            return self._replies


def _work(config: dict[str, Any]) -> None:
    """A worker's life: take a command, carry it out with the others, report."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    mailbox = config["mailbox"]
    (reference,) = ray.get(mailbox.setup.remote())
    setup: SlotSetup = ray.get(reference)
    run = SegmentRun(setup, World(context.get_world_rank(), context.get_world_size(), device))
    number = 0
    while True:
        command: _Command = ray.get(mailbox.command.remote(number))
        if command.kind == "stop":
            return
        if command.kind == "begin":
            assert command.given is not None
            run.begin(command.given)
            # A rank that cannot begin says so before the others wait for it in a collective.
            ray.get(mailbox.reply.remote(run.advance() if run.failed else None))
        else:
            report = run.advance()
            # Rank 0 tells for all; another rank speaks up only when it failed.
            spoken = report if context.get_world_rank() == 0 or report.status == "failed" else None
            ray.get(mailbox.reply.remote(spoken))
        number += 1


class Group:
    """A persistent TorchTrainer worker group: gloo on CPU, nccl on GPU. Starting it takes seconds, a trial milliseconds."""

    def __init__(self, shared: SlotSetup, plan: ResourcePlan) -> None:
        self._mailbox = ray.remote(num_cpus=0)(_Mailbox).remote([ray.put(shared)], plan.workers_per_trial)
        self._storage = tempfile.mkdtemp(prefix="labelwise-group-")
        gpus = plan.gpus_per_worker > 0
        trainer = TorchTrainer(
            _work,
            train_loop_config={"mailbox": self._mailbox},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=int(_COLLECTIVE_TIMEOUT.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=plan.workers_per_trial, use_gpu=gpus, resources_per_worker=plan.worker_resources
            ),
            run_config=RunConfig(storage_path=self._storage, name="group"),
        )
        self._broken: BaseException | None = None
        self._refused: Report | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._broken = error

    def _call(self, command: _Command) -> list[Report | None]:
        ray.get(self._mailbox.send.remote(command))
        pending = self._mailbox.replies.remote()
        while True:
            ready, _ = ray.wait([pending], timeout=1.0)
            if ready:
                return ray.get(pending)
            if not self._thread.is_alive():
                # The slot is of no more use: this exception makes Tune replace it.
                raise RuntimeError("the worker group of this slot ended") from self._broken

    def begin(self, given: Assignment) -> None:
        self._refused = next((report for report in self._call(_Command("begin", given)) if report is not None), None)

    def advance(self) -> Report:
        if self._refused is not None:
            return self._refused
        spoken = [r for r in self._call(_Command("advance")) if r is not None]
        failed = [r for r in spoken if r.status == "failed"]
        return (failed or spoken)[0]

    def close(self) -> None:
        ray.get(self._mailbox.send.remote(_Command("stop")))
        self._thread.join(timeout=30)
        ray.kill(self._mailbox)
        shutil.rmtree(self._storage, ignore_errors=True)
