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
from methods.batch import BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, SharedConfig
from methods.data.records import Split
from methods.parts.encoders import Encoder, EncoderSpec
from methods.protocols import protocol
from methods.world import World
from orchestrator.engine.controller import Controller
from orchestrator.engine.events import FORMAT, Started, Trained
from orchestrator.engine.health import SETTLED, HealthLimits
from orchestrator.engine.history import History
from orchestrator.engine.journal import Journal
from orchestrator.engine.records import Report, Rung, SlotSetup, TrialSpec
from orchestrator.engine.trial import SegmentRun, held_back, whole_budget
from orchestrator.folder import RunFolder
from orchestrator.outputs.plots import health_figure
from orchestrator.outputs.tensorboard import TensorBoardSink
from orchestrator.strategies.asha_stopping import AshaStopping
from orchestrator.strategies.sampler import Search
from orchestrator.study import COLLAPSE, Limit, Selection, Study
from search_spaces.space import Space


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
    """Tells 4 epochs; trials of ``one`` have no spread from epoch 2 on. Goes on from its checkpoint at the rung, epoch 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, job: TrialSpec) -> None:
        self.spec, self.epoch = job, 1 if job.checkpoint else 0

    def advance(self) -> Report:
        job = self.spec
        self.epoch += 1
        sd = 0.01 if job.method == "one" and self.epoch >= 2 else 0.4
        rung = Rung(2, 0.5, 10, 0.4, 0.6, "validation", None, 0.1) if self.epoch == 2 else None
        if self.epoch == 4:
            rung = Rung(4, 0.5 + job.trial / 100, 10, 0.4, 0.6, "validation", None, 0.1)
        checkpoint = None
        if rung is not None:
            path = self.folder / f"{job.key}.pt"
            path.touch()
            checkpoint = str(path)
        status: Any = "finished" if self.epoch == 4 else "running"
        parts = {"loss": 1.0, "embedding_sd": sd, "mask_rate": 0.5}
        return Report(job.key, self.epoch, "", parts, self.epoch, 32, status, "", rung, checkpoint, (2, 6, 0), 100)


def play(folder: Path, configs: dict[str, type], kill_at: int | None, journal_class: Any, sinks: Any = ()) -> History:
    journal = journal_class(folder / "journal.jsonl", -1 if kill_at is None else kill_at)
    try:
        history = History.read(journal.path)
        if history.started is None:
            started = Started(FORMAT, 6, {})
            journal.write(started)
            history.add(started)
        search, rungs = Search(Space(configs), 0, 2), AshaStopping((2, 4), 1)
        stops = HealthLimits(COLLAPSE, {})
        sweep = Controller(search, rungs, Selection(top=1, seeds=1), frozenset(), journal, history, 2, 0, sinks, stops)
        slot = IllSlot(folder)
        while (job := sweep.next_job()) is not None:
            slot.begin(job)
            while not sweep.receive(slot.advance()):
                pass
        return history
    finally:
        journal.close()


class Dying(Journal):
    def __init__(self, path: Path, writes: int) -> None:
        super().__init__(path)
        self.writes = writes

    def write(self, event: Any) -> None:
        if self.writes == 0:
            raise KeyboardInterrupt
        self.writes -= 1
        super().write(event)


def course(history: History) -> list[Any]:
    return [(t.spec.key, t.status, t.reason, t.epochs, [r.epoch for r in t.rungs]) for t in history.trials.values()]


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.usefixtures("_no_sync")
def test_an_ill_trial_ends_with_its_reason_and_keeps_its_score(tmp_path: Path, configs: dict[str, type]) -> None:
    history = play(tmp_path, configs, None, Dying)
    ill = [t for t in history.search() if t.spec.method == "one" and t.spec.trial >= 2]
    well = [t for t in history.trials.values() if t not in ill]
    assert ill
    for trial in ill:
        assert (trial.status, trial.epochs, trial.value) == ("pruned", 3, 0.5)
        assert trial.reason == "stopped: embedding_sd was 0.01, below 0.05 in 2 epochs in a row"
    assert all((t.status, t.epochs) == ("finished", 4) for t in well), "defaults and retrainings are never stopped"
    assert "one" in {t.spec.method for t in well}, "so one of them was as ill"
    assert history.selected == [max(t.spec.trial for t in well)]
    assert course(History.read(tmp_path / "journal.jsonl")) == course(history)


@pytest.mark.usefixtures("_no_sync")
def test_killed_at_any_write_the_same_trials_are_stopped_at_the_same_epoch(tmp_path: Path, configs: dict[str, type]) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = course(play(whole, configs, None, Dying))
    writes = len((whole / "journal.jsonl").read_text().splitlines())
    for at in range(1, writes):
        folder = tmp_path / str(at)
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            play(folder, configs, at, Dying)
        assert course(play(folder, configs, None, Dying)) == expected, f"killed at write {at}"


@pytest.mark.usefixtures("_no_sync")
def test_tensorboard_and_the_report_show_signals_apart_from_losses(tmp_path: Path, configs: dict[str, type]) -> None:
    study = Study(data="digits", methods=["simclr"])
    folder = RunFolder(LocalStorage(tmp_path))
    sink = TensorBoardSink(folder, study)
    history = play(tmp_path, configs, None, Dying, (sink,))
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
    empty = dataclasses.replace(history, curves={})
    assert health_figure(empty, ["one", "two"], COLLAPSE) is None


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
        rungs=(5,),
        epoch_images=2 * SETTLED,
        precision="fp32",
        seed=0,
        folder=str(tmp_path),
        threads=1,
    )
    run = SegmentRun(setup, World())
    run.begin(TrialSpec("0000", 0, "constant", {}, 0))
    reports = [run.advance(), run.advance()]
    events = [Trained(r.key, r.epoch, 0.0, dict(r.parts), steps=r.steps) for r in reports]
    stops = HealthLimits(Study(data="digits", methods=["simclr"]).stop, {})
    assert stops.judge("constant", events[:1]) == ""
    assert stops.judge("constant", events).startswith("stopped: projection_sd was ")


def test_what_is_held_back_is_the_budgets_labels_that_a_method_does_not_see(make_split: Callable[..., Split]) -> None:
    split = make_split(4, 10, 5, 8)
    held = held_back(split, split.train)
    assert held is not None
    assert sorted((held >= 0).nonzero()[0]) == sorted(split.validation.index)
    assert (held[split.validation.index] == split.validation.label).all()
    setup: Any = type("Setup", (), {"split": split})
    assert held_back(split, whole_budget(setup)) is None, "a final fit has seen them all"
    other = dataclasses.replace(split.validation, data=dataclasses.replace(split.validation.data))
    assert held_back(dataclasses.replace(split, validation=other), split.train) is None, "few-shot: classes of another set"
