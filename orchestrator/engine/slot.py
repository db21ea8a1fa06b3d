"""The adapters to Ray: a slot is a reused Tune actor that runs one trial after another; for trials on several workers it keeps
a persistent Ray Train worker group. Only here do dictionaries with string keys cross a boundary, and only Ray's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import ray
import torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.plan import ResourcePlan
from methods.contracts import Method
from methods.world import World
from orchestrator.engine.records import Report, SlotSetup, TrialSpec
from orchestrator.engine.trial import TrialRun

SPEC, REPORT = "spec", "report"

OURS = ("cluster", "methods", "orchestrator", "search_spaces")
"""Packages that every worker has."""

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def ship_user_code(methods: Iterable[Method], objective: object) -> None:
    """Lets a user's own methods and objective travel to the workers with their code: their modules need not exist there."""
    owners = {inspect.getmodule(part) for m in methods for part in (m.config, m.learner, m.stages) if part is not None}
    owners.add(inspect.getmodule(objective) if callable(objective) else None)
    for module in owners:
        if module is not None and module.__name__ != "__main__" and module.__name__.partition(".")[0] not in OURS:
            ray.cloudpickle.register_pickle_by_value(module)


def encode_job(spec: TrialSpec) -> dict[str, str]:
    """A spec as Tune's trial config."""
    return {SPEC: json.dumps(asdict(spec))}


def decode_job(config: dict[str, Any]) -> TrialSpec:
    return TrialSpec(**json.loads(config[SPEC]))


def decode_report(result: dict[str, Any]) -> Report | None:
    return result.get(REPORT)


class Slot(tune.Trainable):
    """One warm process. ``reset_config`` hands it the next trial; nothing of the last one stays."""

    def setup(self, config: dict[str, Any], *, shared: SlotSetup, plan: ResourcePlan) -> None:
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self._runner: TrialRun | Group = (
            Group(shared, plan) if plan.workers_per_trial > 1 else TrialRun(shared, World(device=_device()))
        )
        self._runner.begin(decode_job(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._runner.begin(decode_job(new_config))
        return True

    def step(self) -> dict[str, Any]:
        report = self._runner.advance()
        return {REPORT: report, "done": report.status != "running"}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune asks for none: checkpoints are the trial's own, told in the journal."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See ``save_checkpoint``."""

    def cleanup(self) -> None:
        if isinstance(self._runner, Group):
            self._runner.close()


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class _Command:
    kind: Literal["begin", "advance", "stop"]
    spec: TrialSpec | None = None


class _Mailbox:
    """Passes commands to the workers of a group and their reports back, each numbered; waits without polling."""

    def __init__(self, setup: list[Any], workers: int) -> None:
        self._setup, self._workers = setup, workers
        self._commands: list[_Command] = []
        self._replies: dict[int, list[Report | None]] = {}
        self._changed = asyncio.Condition()

    async def setup(self) -> list[Any]:
        return self._setup

    async def send(self, command: _Command) -> int:
        async with self._changed:
            self._commands.append(command)
            self._changed.notify_all()
            return len(self._commands) - 1

    async def command(self, number: int) -> _Command:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._commands) > number)
            return self._commands[number]

    async def reply(self, number: int, report: Report | None) -> None:
        async with self._changed:
            self._replies.setdefault(number, []).append(report)
            self._changed.notify_all()

    async def replies(self, number: int) -> list[Report | None]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._replies.get(number, [])) == self._workers)
            return self._replies.pop(number)


def _work(config: dict[str, Any]) -> None:
    """A worker's life: take a command, carry it out with the others, report."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    mailbox = config["mailbox"]
    (reference,) = ray.get(mailbox.setup.remote())
    setup: SlotSetup = ray.get(reference)
    run = TrialRun(setup, World(context.get_world_rank(), context.get_world_size(), device))
    number = 0
    while True:
        command: _Command = ray.get(mailbox.command.remote(number))
        if command.kind == "stop":
            return
        if command.kind == "begin":
            assert command.spec is not None
            run.begin(command.spec)
            ray.get(mailbox.reply.remote(number, None))
        else:
            report = run.advance()
            # Rank 0 tells for all; another rank speaks up only when it failed.
            spoken = report if context.get_world_rank() == 0 or report.status == "failed" else None
            ray.get(mailbox.reply.remote(number, spoken))
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
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._broken = error

    def _call(self, command: _Command) -> list[Report | None]:
        number = ray.get(self._mailbox.send.remote(command))
        pending = self._mailbox.replies.remote(number)
        while True:
            ready, _ = ray.wait([pending], timeout=1.0)
            if ready:
                return ray.get(pending)
            if not self._thread.is_alive():
                # The slot is of no more use: this exception makes Tune replace it.
                raise RuntimeError("the worker group of this slot ended") from self._broken

    def begin(self, spec: TrialSpec) -> None:
        self._call(_Command("begin", spec))

    def advance(self) -> Report:
        spoken = [r for r in self._call(_Command("advance")) if r is not None]
        failed = [r for r in spoken if r.status == "failed"]
        return (failed or spoken)[0]

    def close(self) -> None:
        ray.get(self._mailbox.send.remote(_Command("stop")))
        self._thread.join(timeout=30)
        ray.kill(self._mailbox)
        shutil.rmtree(self._storage, ignore_errors=True)
