"""Who a health signal stops: each rule at its edges, and a study in which trials are stopped, killed and resumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cluster.storage import LocalStorage
from methods import BatchSpec, Context, Encoder, EncoderSpec, Learner, Loss, Method, Optimizer, SharedConfig, Step
from methods.data.records import Split
from methods.protocols import protocol
from methods.tasks import Classification
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.engine.events import Trained
from orchestrator.engine.health import SETTLED, HealthLimits
from orchestrator.engine.history import History
from orchestrator.engine.records import Assignment, Report, Rung, Segment, SlotSetup, TrialSpec
from orchestrator.engine.trial import SegmentRun
from orchestrator.folder import RunFolder
from orchestrator.outputs.plots import health_figure
from orchestrator.outputs.tensorboard import TensorBoardSink
from orchestrator.strategies import AshaStopping
from orchestrator.study import COLLAPSE, Limit, Selection, Study


def curve(*values: float | None, steps: int = SETTLED, name: str = "embedding_sd") -> list[Trained]:
    parts = [{} if value is None else {name: value} for value in values]
    return [Trained("0", epoch, 1.0, part, steps=steps) for epoch, part in enumerate(parts, start=1)]


LOW = HealthLimits({"embedding_sd": Limit(below=0.05)}, {"late": 3})


@pytest.mark.parametrize(
    ("values", "stopped"),
    [
        ((), False),
        ((0.01,), False),
        ((0.01, 0.01), True),
        ((0.01, 0.05), False),  # the limit itself is allowed
        ((0.5, 0.01, 0.049), True),
        ((0.01, 0.2, 0.01), False),  # not in a row
        ((0.01, None), False),  # not told: another stage
        ((0.01, None, 0.01), False),
        ((math.nan, math.nan), False),
    ],
)
def test_a_signal_stops_after_so_many_epochs_in_a_row(values: tuple[float | None, ...], stopped: bool) -> None:
    assert bool(LOW.judge("any", curve(*values))) is stopped


def test_the_reason_names_signal_value_and_limit() -> None:
    assert LOW.judge("any", curve(0.01, 0.0123)) == "stopped: embedding_sd was 0.0123, below 0.05 in 2 epochs in a row"
    above = HealthLimits({"teacher_distance": Limit(above=2, epochs=1)}, {})
    assert above.judge("any", curve(2.5, name="teacher_distance")) == "stopped: teacher_distance was 2.5, above 2"
    assert above.judge("any", curve(2.0, name="teacher_distance")) == ""


def test_nothing_counts_before_a_methods_first_epoch_or_before_statistics_have_settled() -> None:
    assert LOW.judge("late", curve(0.01, 0.01, 0.01)) == ""
    assert LOW.judge("late", curve(0.01, 0.01, 0.01, 0.01)) != ""
    assert LOW.judge("any", curve(0.01, 0.01, 0.01, steps=SETTLED - 1)) == ""


def test_without_limits_nobody_stops() -> None:
    assert HealthLimits({}, {}).judge("any", curve(0.0, 0.0, 0.0)) == ""


# A study whose first method collapses


class IllSlot:
    """Tells 4 epochs; trials of ``one`` have no spread from epoch 2 on. Its rung is epoch 2."""

    def __init__(self, folder: Path, failing: float, study: int) -> None:
        self.folder, self.spec = folder, None

    def begin(self, given: Assignment) -> None:
        self.spec, self.epoch = given.spec, 2 if given.segment.start else 0

    def advance(self) -> Report:
        spec: Any = self.spec
        self.epoch += 1
        sd = 0.01 if spec.method == "one" and self.epoch >= 2 else 0.4
        reached = self.epoch in (2, 4)
        value = 0.5 if self.epoch == 2 else 0.5 + spec.trial / 100
        rung = Rung(self.epoch, value, 10, 0.4, 0.6, "validation", None, 0.1) if reached and spec.purpose != "refit" else None
        checkpoint = f"{spec.key}-{self.epoch}.pt" if reached else None
        if checkpoint:
            (self.folder / checkpoint).touch()
        return Report(
            key=spec.key,
            epoch=self.epoch,
            stage="",
            parts={"loss": 1.0, "embedding_sd": sd, "mask_rate": 0.5},
            train_seconds=self.epoch,
            images=32,
            status="reached" if reached else "running",
            done=Fidelity("epochs", self.epoch),
            rung=rung,
            checkpoint=checkpoint,
            pseudo_labels=(2, 6, 0),
            steps=100,
        )


@pytest.fixture
def ill(pretence: Callable[..., Any]) -> Callable[..., Any]:
    """ill(**settings): a study whose method ``one`` collapses."""
    fixed = {
        "trials": 6, "epochs": (2, 4), "strategy": AshaStopping(1), "selection": Selection(top=1, seeds=1),
        "refits": frozenset(), "startup": 2, "health": HealthLimits(COLLAPSE, {}), "slot": IllSlot,
    }  # fmt: skip
    return lambda **settings: pretence(**fixed, **settings)


def course(history: History) -> list[Any]:
    return [(t.spec.key, t.status, t.reason, t.epochs, [r.epoch for r in t.rungs]) for t in history.trials.values()]


def test_an_ill_trial_ends_with_its_reason_and_keeps_its_score(ill: Callable[..., Any]) -> None:
    study = ill()
    history = study.play()
    stopped = [t for t in history.search() if t.spec.method == "one" and t.spec.trial >= 2]
    well = [t for t in history.trials.values() if t not in stopped]
    assert stopped
    for trial in stopped:
        assert (trial.status, trial.epochs, trial.value) == ("pruned", 3, 0.5)
        assert trial.reason == "stopped: embedding_sd was 0.01, below 0.05 in 2 epochs in a row"
    assert all((t.status, t.epochs) == ("finished", 4) for t in well), "defaults and retrainings are never stopped"
    assert "one" in {t.spec.method for t in well}, "so one of them was as ill"
    assert history.selected == [max(t.spec.trial for t in well)]
    assert course(study.history()) == course(history)


def test_killed_at_any_write_the_same_trials_are_stopped_at_the_same_epoch(
    ill: Callable[..., Any], killed: type[BaseException]
) -> None:
    whole = ill()
    expected = course(whole.play())
    for at in range(1, whole.written):
        study = ill()
        with pytest.raises(killed):
            study.play(kill_at=at)
        assert course(study.play()) == expected, f"killed at write {at}"


def test_tensorboard_and_the_report_show_signals_apart_from_losses(tmp_path: Path, ill: Callable[..., Any]) -> None:
    study = Study(data="digits", methods=["simclr"])
    folder = RunFolder(LocalStorage(tmp_path))
    sink = TensorBoardSink(folder, study)
    history = ill(sinks=(sink,)).play()
    sink.close()
    stopped = next(key for key, trial in history.trials.items() if trial.status == "pruned")
    events = EventAccumulator(str(tmp_path / "tensorboard" / stopped), size_guidance={"histograms": 0}).Reload()
    assert [e.value for e in events.Scalars("health/embedding_sd")] == pytest.approx([0.4, 0.01, 0.01])
    assert len(events.Scalars("train/loss")) == 3
    assert "train/embedding_sd" not in events.Tags()["scalars"]
    found = events.Histograms("health/pseudo_labels")[0].histogram_value
    assert (found.num, found.sum) == (8, 6)
    assert list(found.bucket) == [2, 6, 0]
    figure = health_figure(history, ["one", "two"], COLLAPSE)
    assert figure is not None
    assert figure.startswith("<svg")
    assert health_figure(History(), ["one", "two"], COLLAPSE) is None


# Real training


class Constant(Learner):
    """Its projections are one point from the start, whatever its encoder does."""

    def __init__(self, config: SharedConfig, context: Context) -> None:
        super().__init__()
        self.backbone = context.new_encoder()
        self.head = nn.Linear(self.backbone.dim, 4)
        nn.init.zeros_(self.head.weight)

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=2)

    def loss(self, step: Step) -> Loss:
        return Loss(0 * self.head(self.backbone(step.from_pool().images)).mean())

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.head

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", 1e-3)


def test_a_collapsed_training_is_stopped_by_a_studys_default(make_split: Callable[..., Split], tmp_path: Path) -> None:
    split = dataclasses.replace(make_split(4, 10, 5, 8), test=None)
    method = Method("constant", "selfsup", "none", "collapsed", SharedConfig, Constant)
    setup = SlotSetup(
        split=split,
        methods={"constant": method},
        encoder=EncoderSpec("conv4"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=protocol("knn"),
        objective=None,
        top=Fidelity("epochs", 5),
        task=Classification(),
        epoch_images=2 * SETTLED,
        precision="fp32",
        seed=0,
        storage=LocalStorage(tmp_path),
        threads=1,
    )
    run = SegmentRun(setup, World())
    run.begin(Assignment(TrialSpec("0000", 0, "constant", {}, 0), Segment("0000", Fidelity("epochs", 5))))
    reports = [run.advance(), run.advance()]
    events = [Trained(r.key, r.epoch, 0.0, dict(r.parts), steps=r.steps) for r in reports]
    stops = HealthLimits(Study(data="digits", methods=["simclr"]).stop, {})
    assert stops.judge("constant", events[:1]) == ""
    assert stops.judge("constant", events).startswith("stopped: projection_sd was ")
