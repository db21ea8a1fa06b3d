"""Trainings in seconds, under a clock that the toys' steps move."""

from __future__ import annotations

import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.batch import Step
from methods.catalogue import CATALOGUE
from methods.contracts import TrainingError
from methods.data.records import ArrayImages, Split, TrainData
from methods.parts.encoders import EncoderSpec
from methods.training import Fidelity, Training, TrainSettings, clock
from methods.world import World
from search_spaces.domains import build


def cases(world: World) -> dict[str, Tensor]:
    """What one of two workers does in a training of two stages in seconds; the second's clock runs three times as fast."""
    clock.now = lambda device=None: time.perf_counter() * (1 + 2 * world.rank)
    data = TrainData(ArrayImages(np.full((32, 8, 8, 3), 99, dtype=np.uint8)), np.arange(32) % 4, 4, (0.5,) * 3, (0.2,) * 3)
    entry = CATALOGUE["noisy_student"]
    config = build(entry.config, {"generations": 1, "batch_size": 4, "mu": 1})
    settings = TrainSettings(None, EncoderSpec("conv4"), epoch_images=64, precision="fp32", seconds=1.0)
    training = Training(entry, config, data, settings, world)
    inner, seen = training.step_at, []

    def noted(number: int, progress: float) -> Step:
        seen.append((training.stage_number, number, progress))
        return inner(number, progress)

    training.step_at = noted  # type: ignore[method-assign]
    done = []
    while training.done.amount < 1:
        done.append(training.train(until=min(training.done.amount + 0.2, 1.0)).done.amount)
    return {"seen": torch.tensor(seen, dtype=torch.float64), "done": torch.tensor(done, dtype=torch.float64)}


@pytest.fixture
def seconds(toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that a step of each stage takes; the time of the day stands under ``now``."""
    each = {"now": 1000.0, "train": 1.0, "second": 1.0, "third": 1.0}

    def took(stage: str) -> None:
        each["now"] += each[stage]

    monkeypatch.setattr(toys.Toy, "took", staticmethod(took))
    monkeypatch.setattr(clock, "now", lambda device=None: each["now"])
    return each


# Words


@pytest.mark.parametrize(
    ("fidelity", "said"),
    [
        (Fidelity("epochs", 3), "3 epochs"),
        (Fidelity("epochs", 1), "1 epoch"),
        (Fidelity("seconds", 45), "45 s"),
        (Fidelity("seconds", 1.0), "1 s"),
        (Fidelity("seconds", 0.25), "0.25 s"),
        (Fidelity("seconds", 1234567.8912), "1234567.891 s"),
        (Fidelity("labels", 20), "20 labels"),
        (Fidelity("labels", 1), "1 label"),
    ],
)
def test_a_fidelity_reads_as_words(fidelity: Fidelity, said: str) -> None:
    assert str(fidelity) == said


def test_settings_say_where_a_training_ends() -> None:
    assert TrainSettings(3, EncoderSpec()).top == Fidelity("epochs", 3)
    assert isinstance(TrainSettings(3, EncoderSpec()).top.amount, int)
    assert TrainSettings(None, EncoderSpec(), seconds=4.5).top == Fidelity("seconds", 4.5)


@pytest.mark.parametrize(("epochs", "given"), [(None, None), (3, 4.0), (0, None), (None, 0.0), (None, -1.0)])
def test_exactly_one_length_is_given(epochs: int | None, given: float | None) -> None:
    with pytest.raises(TrainingError, match=f"either epochs or seconds, above 0, got epochs={epochs} and seconds={given}$"):
        TrainSettings(epochs, EncoderSpec(), seconds=given)


# Epochs


def test_a_training_in_epochs_counts_whole_ones(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split, epochs=3)
    assert training.done == Fidelity("epochs", 0)
    report = training.train(until=3)
    assert (report.epoch, report.done) == (1, Fidelity("epochs", 1)), "the end of an epoch comes before"
    assert isinstance(report.done.amount, int)
    for until in (1, 0, 4):
        with pytest.raises(TrainingError, match=f"at 1 epoch of 3 epochs can go on to between the two, got until={until}"):
            training.train(until)
    with pytest.raises(TrainingError, match=r"whole number of them, got until=2\.5"):
        training.train(2.5)
    assert training.train(2).epoch == training.epoch == 2


# Seconds


@pytest.mark.parametrize(("first", "then"), [(1.0, 3.0), (3.0, 1.0), (7.0, 0.5)])
def test_stages_end_by_the_clock_whatever_their_speed(
    toys: SimpleNamespace, split: Split, seconds: dict[str, float], first: float, then: float
) -> None:
    """Each stage has its share of the seconds, and its schedule runs from its first step to its end."""
    seconds |= {"train": first, "second": then, "third": then}
    training = toys.start(split, toys.three_stages(), seconds=200.0)
    begins: dict[str, list[float]] = {"train": [], "second": [], "third": []}
    took = toys.Toy.took

    def noted(stage: str) -> None:
        begins[stage].append(seconds["now"])
        took(stage)

    toys.Toy.took = staticmethod(noted)
    while training.done.amount < 200:
        training.train()
    longest = max(first, then)
    assert seconds["now"] == pytest.approx(1200, abs=longest)
    for (stage, at), began, lasts in zip(begins.items(), (1000, 1050, 1150), (50, 100, 50), strict=True):
        shares = np.array([step.progress for step in toys.steps_of(stage)])
        assert at[0] == pytest.approx(began, abs=longest)
        assert shares[0] == 0
        assert shares[-1] == pytest.approx(1, abs=1.01 * seconds[stage] / (lasts - longest))
        assert shares[-1] < 1
        assert np.diff(shares) == pytest.approx(seconds[stage] / (began + lasts - at[0])), "a share of its seconds a step"


def test_progress_and_rate_follow_a_speed_that_changes(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    training = toys.start(split, seconds=20.0, epoch_images=10**6)
    training.train(until=5)
    seconds["train"] = 5.0
    report = training.train()
    assert [step.progress for step in toys.steps_of()] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75])
    assert training.optimisation.optimizer.param_groups[0]["lr"] == training.optimisation.rate(0.75)
    assert report.done == training.done == Fidelity("seconds", 20.0)
    with pytest.raises(AssertionError, match="nothing left to train"):
        training.train()


def test_an_epoch_is_an_interval_of_reports(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    """160 images are an epoch, so ten steps of a second; ``until`` may end one before and the next goes on to its end."""
    training = toys.start(split, seconds=30.0)
    reports = [training.train(), training.train(until=13), training.train(), training.train()]
    assert [report.done.amount for report in reports] == [10, 13, 20, 30]
    assert [report.epoch for report in reports] == [1.0, 1.3, 2.0, 3.0]
    assert [report.images for report in reports] == [160, 48, 112, 160]
    assert all(isinstance(report.epoch, float) for report in reports)


def test_time_between_stretches_does_not_count(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    training = toys.start(split, seconds=30.0)
    seconds["now"] += 500
    training.train(until=4)
    seconds["now"] += 500
    training.one_step()  # by hand
    assert training.train(until=6).done == Fidelity("seconds", 6.0)


def test_at_until_the_learner_that_was_trained_stays(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    training = toys.start(split, toys.three_stages(), seconds=40.0, epoch_images=10**6)
    seconds["train"] = 3.0
    report = training.train(until=11)  # The stage ends at 10, seen at 12.
    assert (report.stage, report.done.amount, report.steps) == ("train", 12.0, 4)
    assert training.train(until=13).stage == "second"
    assert training.steps_done == 1


def test_every_stage_does_a_step_however_late_it_is(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    seconds["train"] = 100.0
    training = toys.start(split, toys.three_stages(), seconds=40.0)
    assert training.train(until=5).stage == "third", "after 100 of 40 seconds it is at its top, and whole"
    assert [len(toys.steps_of(name)) for name in ("train", "second", "third")] == [1, 1, 1]
    assert {step.progress for step in toys.steps_of("third")} == {0.0}


@pytest.mark.parametrize("stop", [4.0, 12.0, 29.0])
def test_seconds_survive_state_and_load(toys: SimpleNamespace, split: Split, seconds: dict[str, float], stop: float) -> None:
    """Under a clock as regular as this one, stopped and resumed is bitwise what runs through."""

    def reports(training: Training, until: float) -> list[tuple[float, str, float]]:
        told = []
        while training.done.amount < until:
            report = training.train(until)
            told.append((report.epoch, report.stage, report.done.amount))
        return told

    whole, before = (toys.start(split, toys.three_stages(), seconds=40.0) for _ in range(2))
    assert reports(whole, stop) == reports(before, stop)
    state = toys.through_disk(before.state())
    seconds["now"] += 77
    after = toys.start(split, toys.three_stages(), seconds=40.0)
    after.load(state)
    assert after.done == before.done == Fidelity("seconds", stop)
    assert after.epoch == before.epoch
    assert reports(after, 40) == reports(whole, 40)
    toys.assert_equal_state(whole, after)


def test_a_checkpoint_of_the_other_unit_is_refused(toys: SimpleNamespace, split: Split, seconds: dict[str, float]) -> None:
    in_epochs, in_seconds = toys.start(split), toys.start(split, seconds=5.0)
    with pytest.raises(TrainingError, match="must be of a training in seconds, got one in epochs"):
        in_seconds.load(in_epochs.state())
    with pytest.raises(TrainingError, match="must be of a training in epochs, got one in seconds"):
        in_epochs.load(in_seconds.state())


def test_a_loss_that_is_not_finite_ends_a_training_in_seconds(
    toys: SimpleNamespace, split: Split, seconds: dict[str, float]
) -> None:
    report = toys.start(split, config=toys.Config(poison=3), seconds=500.0, epoch_images=10**6).train()
    assert not report.finite
    assert report.done.amount == 50


@pytest.mark.slow
def test_workers_agree_on_the_time(tmp_path: Path) -> None:
    """All take the same steps at the same progress, and end together, whatever their own clocks say."""
    run = runpy.run_path(str(Path(__file__).parents[1] / "two_workers.py"))["run"]
    one, two = run(__file__, tmp_path, seconds=60)
    assert torch.equal(one["seen"], two["seen"])
    assert torch.equal(one["done"], two["done"])
    assert set(one["seen"][:, 0].tolist()) == {0.0, 1.0}
    assert one["done"][-1] >= 1
