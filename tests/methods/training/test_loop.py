"""The training loop, driven by toy learners: epochs and stages, the same again, and what can go wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.contracts import Method, Stage, TrainingError
from methods.data.records import ArrayImages, Split, TrainData
from methods.training import EPOCH_IMAGES, clock, computes_bf16
from methods.world import World

# Epochs, progress and the schedule


def test_progress_is_measured_against_the_top_rung_whatever_rung_is_reached(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split, epochs=4).train_epoch()
    progress = [step.progress for step in toys.steps_of()]
    assert progress == [k / 40 for k in range(10)]


def test_an_epoch_is_the_pool_or_10240_images_whichever_is_more(toys: SimpleNamespace, split: Split) -> None:
    report = toys.start(split, config=toys.Config(batch_size=60), epochs=1, epoch_images=None).train_epoch()
    assert EPOCH_IMAGES == 10_240
    assert abs(report.images - EPOCH_IMAGES) < 60
    assert report.images == 60 * len(toys.Toy.log)


def test_a_pool_above_10240_is_an_epoch(toys: SimpleNamespace, split: Split) -> None:
    images = ArrayImages(np.zeros((12_000, 4, 4, 3), dtype=np.uint8))
    large = dataclasses.replace(split, train=TrainData(images, np.full(12_000, -1), 4, (0.5,) * 3, (0.2,) * 3))
    report = toys.start(large, config=toys.Config(batch_size=60), epochs=1, epoch_images=None).train_epoch()
    assert report.images == 12_000


def test_images_of_every_feed_count(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split, config=toys.Config(labelled=8, tasks=2))
    assert training.train_epoch().images == 36 * 4  # 16 of the pool, 8 labelled, 2 tasks of 2 x (1 + 2): 160 are 4.4 steps
    training.train_epoch()
    assert len(toys.Toy.log) == round(320 / 36)


def test_epochs_and_reports(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split)
    first, second = training.train_epoch(), training.train_epoch()
    assert (first.epoch, second.epoch) == (1, 2)
    assert first.stage == "train"
    assert first.finite
    assert first.seconds > 0
    assert set(first.parts) == {"loss", "size", "autocast", "embedding_sd", "effective_rank"}
    assert (first.steps, second.steps) == (10, 20)
    with pytest.raises(AssertionError):
        training.train_epoch()


def test_warm_up_and_cosine(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split, epochs=10)
    rate = training.optimisation.rate
    assert rate(0.0) == pytest.approx(1e-4)
    assert rate(0.025) == pytest.approx(5e-3)
    assert rate(0.05) == pytest.approx(1e-2)
    assert rate(0.525) == pytest.approx(5e-3)
    assert rate(1.0) == pytest.approx(0.0, abs=1e-9)
    training.train_epoch()
    used = training.optimisation.optimizer.param_groups[0]["lr"]
    assert used == pytest.approx(rate(9 / 100))


def test_constant_schedule_stays(toys: SimpleNamespace, split: Split) -> None:
    rate = toys.start(split, config=toys.Config(schedule="constant")).optimisation.rate
    assert rate(0.5) == rate(0.999) == 1e-2


def test_norms_and_biases_are_not_decayed(toys: SimpleNamespace, split: Split) -> None:
    decayed, plain = toys.start(split).optimisation.optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])


# Stages


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.9])
def test_two_stages_share_the_epochs(toys: SimpleNamespace, split: Split, share: float) -> None:
    training = toys.start(split, toys.two_stages(), toys.Config(share=share), epochs=2)
    reports = [training.train_epoch(), training.train_epoch()]
    first, second = toys.steps_of("train"), toys.steps_of("second")
    assert len(first) == round(20 * share)
    assert len(second) == round(20 * (1 - share))
    assert [step.progress for step in first] == [k / len(first) for k in range(len(first))]
    assert [step.progress for step in second] == [k / len(second) for k in range(len(second))]
    assert [report.images for report in reports] == [160, 160]
    assert reports[-1].stage == "second"


def test_an_epoch_that_ends_a_stage_leaves_that_stages_learner_to_be_scored(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split, toys.two_stages(), epochs=2)
    assert training.train_epoch().stage == "train"
    assert type(training.learner) is toys.Toy
    assert training.train_epoch().stage == "second"


def test_a_later_stage_starts_from_the_earlier_ones_learner(toys: SimpleNamespace, split: Split) -> None:
    training = toys.start(split, toys.two_stages(), toys.Config(share=0.25), epochs=2)
    training.train_epoch()
    assert type(training.learner) is toys.Second
    previous = training.learner.context.previous
    assert previous is not None
    assert not torch.equal(previous.encoder().map[0].weight, toys.start(split).learner.encoder().map[0].weight)


# The same again


@pytest.mark.parametrize("method", ["one_stage", "two_stages"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize(("stop", "share"), [(1, 0.4), (2, 0.4), (2, 0.5)])
def test_stop_and_resume_equals_uninterrupted_bitwise(
    toys: SimpleNamespace, split: Split, method: str, kind: str, stop: int, share: float
) -> None:
    config = toys.Config(kind=kind, share=share)
    chosen = getattr(toys, method)()
    whole = toys.start(split, chosen, config, epochs=4)
    expected = [whole.train_epoch().parts for _ in range(4)]
    before = toys.start(split, chosen, config, epochs=4)
    reports = [before.train_epoch().parts for _ in range(stop)]
    state = toys.through_disk(before.state())
    torch.manual_seed(99)
    after = toys.start(split, chosen, config, epochs=4)
    after.load(state)
    reports += [after.train_epoch().parts for _ in range(4 - stop)]
    assert reports == expected
    toys.assert_equal_state(whole, after)


def test_same_seed_is_bitwise_equal_and_another_differs(toys: SimpleNamespace, split: Split) -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(runs))  # Whatever happened in this process before must not matter.
        torch.rand(17)
        training = toys.start(split, seed=seed)
        runs.append((training.train_epoch().parts, training))
    assert runs[0][0] == runs[1][0]
    toys.assert_equal_state(runs[0][1], runs[1][1])
    assert runs[0][0]["loss"] != runs[2][0]["loss"]


def test_scoring_between_epochs_changes_nothing(toys: SimpleNamespace, split: Split) -> None:
    plain, scored = toys.start(split), toys.start(split)
    plain.train_epoch()
    scored.train_epoch()
    scored.learner.eval()
    torch.rand(5)
    assert plain.train_epoch().parts == scored.train_epoch().parts


# What can go wrong


@pytest.mark.parametrize("poison", [0, 7, 60])
def test_a_loss_that_is_not_finite_ends_the_training(toys: SimpleNamespace, split: Split, poison: int) -> None:
    report = toys.start(split, config=toys.Config(poison=poison), epochs=1, epoch_images=1600).train_epoch()
    assert not report.finite
    assert len(toys.Toy.log) == (50 if poison < 50 else 100)


def test_a_last_loss_that_is_not_finite_is_seen(toys: SimpleNamespace, split: Split) -> None:
    assert not toys.start(split, config=toys.Config(poison=9), epochs=1).train_epoch().finite


def test_bf16_is_used_where_the_device_computes_in_it(
    toys: SimpleNamespace, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    for capabilities, expected in (({"avx2": True}, 0.0), ({"avx512_bf16": True}, 1.0), ({"amx_bf16": True}, 1.0)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert computes_bf16(torch.device("cpu")) == bool(expected)
        assert toys.start(split).train_epoch().parts["autocast"] == expected


def test_no_labels_is_one_clear_line(toys: SimpleNamespace, split: Split) -> None:
    hidden = dataclasses.replace(split.train, label=np.full(64, -1))
    with pytest.raises(TrainingError, match="learns from labels, and the training part of the label budget is empty"):
        toys.start(dataclasses.replace(split, train=hidden), config=toys.Config(labelled=4))


def test_a_batch_that_does_not_divide_is_one_clear_line(toys: SimpleNamespace, split: Split) -> None:
    with pytest.raises(TrainingError, match="pool batch must divide by the number of workers, got 16 over 3"):
        toys.start(split, world=World(0, 3))


def test_another_methods_checkpoint_is_refused(toys: SimpleNamespace, split: Split) -> None:
    with pytest.raises(TrainingError, match="checkpoint must be of method toy two, got toy"):
        toys.start(split, toys.two_stages()).load(toys.start(split).state())


@pytest.mark.parametrize("method", ["one_stage", "two_stages"])
def test_a_fork_keeps_the_weights_and_its_own_settings(toys: SimpleNamespace, split: Split, method: str) -> None:
    chosen = getattr(toys, method)()
    parent = toys.start(split, chosen, toys.Config(batch_size=16), epochs=4)
    for _ in range(2):
        parent.train_epoch()
    fork = toys.start(split, chosen, toys.Config(batch_size=32), epochs=4, seed=9)
    fork.adopt(toys.through_disk(parent.state()))
    assert fork.done == parent.done
    for name, tensor in parent.learner.state_dict().items():
        assert torch.equal(fork.learner.state_dict()[name], tensor), name
    assert fork.steps_done * 2 == parent.steps_done, "steps of twice the images"
    fork.optimisation.optimizer.param_groups[0]["weight_decay"] = 0.7
    again = toys.start(split, chosen, toys.Config(batch_size=32), epochs=4, seed=9)
    again.adopt(fork.state())
    assert again.optimisation.optimizer.param_groups[0]["weight_decay"] == 0.1, "its own, not the parent's"
    for _ in range(2):
        fork.train_epoch()
    assert fork.done == fork.settings.top
    assert fork.finite


def test_a_fork_of_another_network_is_one_clear_line(toys: SimpleNamespace, split: Split) -> None:
    state = toys.start(split).state()
    state["learner"] = {**state["learner"], "slow": torch.zeros(5)}
    with pytest.raises(TrainingError, match="a fork must keep the network of the trial that it starts from") as caught:
        toys.start(split).adopt(state)
    assert "\n" not in str(caught.value)


def test_shares_must_fill_the_training(toys: SimpleNamespace, split: Split) -> None:
    broken = Method("broken", "selfsup", "none", "a toy", toys.Config, stages=lambda config: (Stage("only", 0.5, toys.Toy),))
    with pytest.raises(AssertionError, match=r"shares of broken's stages sum to 0\.5"):
        toys.start(split, broken)


def test_a_method_is_a_learner_or_stages(toys: SimpleNamespace) -> None:
    with pytest.raises(TypeError, match="neither declares one of learner, stages and fit"):
        Method("neither", "selfsup", "none", "a toy", toys.Config)


def test_the_estimate_of_an_epochs_seconds_weighs_every_stage(
    toys: SimpleNamespace, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = toys.start(split, toys.two_stages(), toys.Config(share=0.25), epochs=2, epoch_images=160)
    seconds = 0.0

    def steps_of_the_first_take_1_second_and_of_the_second_10() -> Mapping[str, Tensor]:
        nonlocal seconds
        seconds += 10.0 if isinstance(training.learner, toys.Second) else 1.0
        return {}

    monkeypatch.setattr(training, "one_step", steps_of_the_first_take_1_second_and_of_the_second_10)
    monkeypatch.setattr(clock, "now", lambda device=None: seconds)
    steps = 160 / training.learner.batch_spec().images
    assert training.seconds_per_epoch() == pytest.approx(steps * (0.25 * 1 + 0.75 * 10), rel=1e-9)


def test_the_estimate_looks_at_the_whole_of_a_stage(
    toys: SimpleNamespace, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that costs more the later it is: as where one layer after another is unfrozen."""
    training = toys.start(split, epochs=2, epoch_images=160)
    length = training.stage_steps()
    assert length >= 6
    seconds = 0.0

    def costs_as_much_as_it_is_late() -> Mapping[str, Tensor]:
        nonlocal seconds
        seconds += training.steps_done
        training.steps_done += 1
        return {}

    monkeypatch.setattr(training, "one_step", costs_as_much_as_it_is_late)
    monkeypatch.setattr(clock, "now", lambda device=None: seconds)
    places = [int((k + 0.5) / 3 * length) for k in range(3)]
    assert training.seconds_per_epoch() == pytest.approx(length / 2 * sum(places) / 3)
