"""Trial turnaround: seconds a trial costs beyond the method's own work, in warm slots and in the documented Ray pattern.

``python tests/benchmarks/bench_turnaround.py`` runs both in one go: the documented Tune + Train pattern (a driver function
that builds a TorchTrainer in each trial), and a study of trivial trials, each with one and with two workers.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import ray
import torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from cluster.connect import connect
from methods import BatchSpec, Classifier, Context, Encoder, Learner, Loss, Method, Optimizer, SharedConfig, Step
from orchestrator import Study, run
from orchestrator.engine.events import Ended, Event, TrialStarted
from orchestrator.engine.history import History
from search_spaces import Float, knob

TRIALS, PATTERN_TRIALS = 20, 4


def train_worker(config: dict[str, float]) -> None:
    """A trivial training function of the documented pattern."""
    tune_metric = torch.tensor(config["x"]) ** 2
    ray.train.report({"value": float(tune_metric)})


def drive(config: dict[str, float]) -> None:
    """The documented driver: one TorchTrainer per trial."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=int(config["workers"]), resources_per_worker={"CPU": 0.45}),
        run_config=RunConfig(storage_path=config["storage"], name=f"train-{config['x']:.9f}"),
    )
    trainer.fit()
    tune.report({"done_value": config["x"]})


def pattern(workers: int, storage: str) -> float:
    """Seconds a trial in the documented pattern, one at a time."""
    started = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(drive, {"CPU": 0.1}),
        param_space={"x": tune.uniform(0, 1), "workers": workers, "storage": storage},
        tune_config=tune.TuneConfig(num_samples=PATTERN_TRIALS, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=storage, name=f"pattern-{workers}", verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    return (time.perf_counter() - started) / PATTERN_TRIALS


@dataclass(frozen=True)
class Config(SharedConfig):
    """A knob to search."""

    x: float = knob(0.5, Float(0.0, 1.0), doc="does nothing", source="none")


class Mean(Encoder):
    """The mean colour."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.dim, self.layers = shape, shape[0], ()

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) / 255

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}


class Trivial(Learner):
    """A linear classifier on the mean colour."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.model = Classifier(Mean(context.shape), context.classes)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(labelled=2)

    def loss(self, step: Step) -> Loss:
        return Loss(self.model(step.from_labelled().images).square().mean())

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> torch.nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", 1e-3)


TRIVIAL = Method("trivial", "baseline", "none", "does next to nothing", Config, Trivial, uses_labels=True)


@dataclass(frozen=True)
class Turnaround:
    """Seconds beyond the method's own work: a trial on average with the slot's first start, and after the first trial."""

    with_start: float
    after_first: float


def slots(workers: int, folder: Path) -> Turnaround:
    """A study of trivial trials in one slot."""
    moments: list[float] = []
    own: list[float] = []
    started = 0.0

    def clock(event: Event, history: History) -> None:
        nonlocal started
        match event:
            case TrialStarted() if not started:
                started = time.perf_counter()
            case Ended() if len(moments) < TRIALS:
                moments.append(time.perf_counter())
                trial = history.trials[event.key]
                own.append(trial.seconds + sum(rung.seconds for rung in trial.rungs))

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    study = Study(
        data=(images, np.arange(200) % 4), labels=40, methods=[TRIVIAL], trials=TRIALS, epochs=1, epoch_images=2,
        selection={"top": 1, "seeds": 1, "refit": False}, slots=1, workers=workers, search={"trivial.lr": 1e-3},
    )  # fmt: skip
    run(study, folder, sinks=[clock])
    beyond = [after - before - work for (before, after), work in zip(pairwise(moments), own[1:], strict=True)]
    return Turnaround((moments[-1] - started - sum(own)) / TRIALS, statistics.median(beyond))


def main() -> None:
    with tempfile.TemporaryDirectory() as storage, connect("local", cpus=2):
        for workers in (1, 2):
            documented = pattern(workers, storage)
            ours = slots(workers, Path(storage) / f"slots-{workers}")
            print(
                f"turnaround, {workers} worker(s): documented pattern {documented:.2f} s a trial ({PATTERN_TRIALS} trials); "
                f"warm slot {ours.after_first:.3f} s after the first ({TRIALS} trials, median), "
                f"{ours.with_start:.3f} s with the first start; "
                f"{documented / ours.after_first:.0f} and {documented / ours.with_start:.0f} times lower",
                flush=True,
            )


if __name__ == "__main__":
    main()
