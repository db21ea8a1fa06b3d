"""The training loop, driven by toy learners that record what they are shown."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batch import BatchSpec, EpisodeShape, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, SharedConfig, Stage, TrainingError
from methods.data.records import ArrayImages, Split, TrainData
from methods.parts.encoders import Encoder, EncoderSpec
from methods.training import EPOCH_IMAGES, Training, TrainSettings, clock, computes_bf16
from methods.world import World
from search_spaces.domains import Choice, Float, Int, knob


@dataclass(frozen=True)
class Config(SharedConfig):
    batch_size: int = knob(16, Int(2, 64), doc="images per step", source="test")
    labelled: int = knob(0, None, legal=Int(0, 64), doc="labelled images per step", source="test")
    tasks: int = knob(0, None, legal=Int(0, 64), doc="episodes per step", source="test")
    poison: int = knob(-1, None, legal=Int(-1, 1000), doc="step at which the loss is NaN", source="test")
    kind: str = knob("adamw", Choice(("adamw", "sgd")), doc="optimizer", source="test")
    schedule: str = knob("cosine", Choice(("cosine", "constant")), doc="schedule", source="test")
    share: float = knob(0.5, Float(0.01, 0.99), doc="share of the first of two stages", source="test")


class Pixels(Encoder):
    """A linear map of the pixels."""

    layers = ()

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.dim = 4
        self.map = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.float() / 255).mean((2, 3))


class Toy(Learner):
    """Pulls embeddings towards random targets; keeps a slow copy and a count in buffers, and a log for the test."""

    slow: Tensor
    log: ClassVar[list[tuple[str, Step]]] = []
    stage: ClassVar[str] = "train"

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.f = Pixels(context.shape)
        self.register_buffer("slow", torch.zeros(4))

    def batch_spec(self) -> BatchSpec:
        c = self.config
        episodes = EpisodeShape(c.tasks, 2, 1, 2) if c.tasks else None
        return BatchSpec(pool=c.batch_size, labelled=c.labelled, episodes=episodes)

    def loss(self, step: Step) -> Loss:
        self.log.append((self.stage, step))
        batch = step.from_pool()
        z = self.f(batch.images)
        total = (z - batch.stream.normal(4)).square().mean() + (z - self.slow).square().mean()
        if step.number == self.config.poison:
            total = total * float("nan")
        return Loss(total, {"size": z.detach().norm(), "autocast": torch.tensor(float(torch.is_autocast_enabled("cpu")))})

    def after_step(self, step: Step) -> None:
        self.slow.lerp_(self.f.map[0].bias, 0.1)  # type: ignore[arg-type]

    def encoder(self) -> Encoder:
        return self.f

    def optimizer(self) -> Optimizer:
        return Optimizer(self.config.kind, lr=1e-2, weight_decay=0.1, schedule=self.config.schedule, clip=1.0)  # type: ignore[arg-type]


class Second(Toy):
    stage: ClassVar[str] = "second"

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        assert context.previous is not None
        self.f.load_state_dict(context.previous.encoder().state_dict())


class Third(Second):
    stage: ClassVar[str] = "third"


def one_stage() -> Method:
    return Method("toy", "selfsup", "none", "a toy", Config, learner=Toy)


def two_stages() -> Method:
    def plan(config: Config) -> tuple[Stage, ...]:
        return Stage("train", config.share, Toy), Stage("second", 1 - config.share, Second)

    return Method("toy two", "selfsup", "none", "a toy", Config, stages=plan)


def start(
    split: Split,
    method: Method | None = None,
    config: Config | None = None,
    epochs: int = 2,
    epoch_images: int | None = 160,
    seed: int = 0,
    world: World | None = None,
) -> Training:
    settings = TrainSettings(epochs, EncoderSpec(), seed, epoch_images, "auto")
    return Training(method or one_stage(), config or Config(), split.train, settings, world)


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    Toy.log.clear()


def steps_of(name: str = "train") -> list[Step]:
    return [step for stage, step in Toy.log if stage == name]


def through_disk(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state as a file would give it back, loaded without unpickling code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def assert_equal_state(a: Training, b: Training) -> None:
    for left, right in ((a.state(), b.state()),):
        assert left.keys() == right.keys()
        for name, value in left["learner"].items():
            assert torch.equal(value, right["learner"][name]), name
        for name, entry in left["optimizer"]["state"].items():
            for key, value in entry.items():
                assert torch.equal(value, right["optimizer"]["state"][name][key]), (name, key)
        assert (left["epoch"], left["stage"], left["step"]) == (right["epoch"], right["stage"], right["step"])


# Epochs, progress and the schedule


def test_progress_is_measured_against_the_top_rung_whatever_rung_is_reached(split: Split) -> None:
    start(split, epochs=4).train_epoch()
    progress = [step.progress for step in steps_of()]
    assert progress == [k / 40 for k in range(10)]


def test_an_epoch_is_the_pool_or_10240_images_whichever_is_more(split: Split) -> None:
    report = start(split, config=Config(batch_size=60), epochs=1, epoch_images=None).train_epoch()
    assert EPOCH_IMAGES == 10_240
    assert abs(report.images - EPOCH_IMAGES) < 60
    assert report.images == 60 * len(Toy.log)


def test_a_pool_above_10240_is_an_epoch(split: Split) -> None:
    images = ArrayImages(np.zeros((12_000, 4, 4, 3), dtype=np.uint8))
    large = dataclasses.replace(split, train=TrainData(images, np.full(12_000, -1), 4, (0.5,) * 3, (0.2,) * 3))
    report = start(large, config=Config(batch_size=60), epochs=1, epoch_images=None).train_epoch()
    assert report.images == 12_000


def test_images_of_every_feed_count(split: Split) -> None:
    training = start(split, config=Config(labelled=8, tasks=2))
    assert training.train_epoch().images == 36 * 4  # 16 of the pool, 8 labelled, 2 tasks of 2 x (1 + 2): 160 are 4.4 steps
    training.train_epoch()
    assert len(Toy.log) == round(320 / 36)


def test_epochs_and_reports(split: Split) -> None:
    training = start(split)
    first, second = training.train_epoch(), training.train_epoch()
    assert (first.epoch, second.epoch) == (1, 2)
    assert first.stage == "train"
    assert first.finite
    assert first.seconds > 0
    assert set(first.parts) == {"loss", "size", "autocast", "embedding_sd", "effective_rank"}
    assert (first.steps, second.steps) == (10, 20)
    with pytest.raises(AssertionError):
        training.train_epoch()


def test_warm_up_and_cosine(split: Split) -> None:
    training = start(split, epochs=10)
    rate = training.optimisation.rate
    assert rate(0.0) == pytest.approx(1e-4)
    assert rate(0.025) == pytest.approx(5e-3)
    assert rate(0.05) == pytest.approx(1e-2)
    assert rate(0.525) == pytest.approx(5e-3)
    assert rate(1.0) == pytest.approx(0.0, abs=1e-9)
    training.train_epoch()
    used = training.optimisation.optimizer.param_groups[0]["lr"]
    assert used == pytest.approx(rate(9 / 100))


def test_constant_schedule_stays(split: Split) -> None:
    rate = start(split, config=Config(schedule="constant")).optimisation.rate
    assert rate(0.5) == rate(0.999) == 1e-2


def test_norms_and_biases_are_not_decayed(split: Split) -> None:
    decayed, plain = start(split).optimisation.optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])


# Stages


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.9])
def test_two_stages_share_the_epochs(split: Split, share: float) -> None:
    training = start(split, two_stages(), Config(share=share), epochs=2)
    reports = [training.train_epoch(), training.train_epoch()]
    first, second = steps_of("train"), steps_of("second")
    assert len(first) == round(20 * share)
    assert len(second) == round(20 * (1 - share))
    assert [step.progress for step in first] == [k / len(first) for k in range(len(first))]
    assert [step.progress for step in second] == [k / len(second) for k in range(len(second))]
    assert [report.images for report in reports] == [160, 160]
    assert reports[-1].stage == "second"


def test_an_epoch_that_ends_a_stage_leaves_that_stages_learner_to_be_scored(split: Split) -> None:
    training = start(split, two_stages(), epochs=2)
    assert training.train_epoch().stage == "train"
    assert type(training.learner) is Toy
    assert training.train_epoch().stage == "second"


def test_a_later_stage_starts_from_the_earlier_ones_learner(split: Split) -> None:
    training = start(split, two_stages(), Config(share=0.25), epochs=2)
    training.train_epoch()
    assert type(training.learner) is Second
    previous = training.learner.context.previous
    assert previous is not None
    assert not torch.equal(previous.encoder().map[0].weight, start(split).learner.encoder().map[0].weight)


# The same again


@pytest.mark.parametrize("method", [one_stage, two_stages])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize(("stop", "share"), [(1, 0.4), (2, 0.4), (2, 0.5)])
def test_stop_and_resume_equals_uninterrupted_bitwise(split: Split, method: Any, kind: str, stop: int, share: float) -> None:
    config = Config(kind=kind, share=share)
    whole = start(split, method(), config, epochs=4)
    expected = [whole.train_epoch().parts for _ in range(4)]
    before = start(split, method(), config, epochs=4)
    reports = [before.train_epoch().parts for _ in range(stop)]
    state = through_disk(before.state())
    torch.manual_seed(99)
    after = start(split, method(), config, epochs=4)
    after.load(state)
    reports += [after.train_epoch().parts for _ in range(4 - stop)]
    assert reports == expected
    assert_equal_state(whole, after)


def test_same_seed_is_bitwise_equal_and_another_differs(split: Split) -> None:
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(runs))  # Whatever happened in this process before must not matter.
        torch.rand(17)
        training = start(split, seed=seed)
        runs.append((training.train_epoch().parts, training))
    assert runs[0][0] == runs[1][0]
    assert_equal_state(runs[0][1], runs[1][1])
    assert runs[0][0]["loss"] != runs[2][0]["loss"]


def test_scoring_between_epochs_changes_nothing(split: Split) -> None:
    plain, scored = start(split), start(split)
    plain.train_epoch()
    scored.train_epoch()
    scored.learner.eval()
    torch.rand(5)
    assert plain.train_epoch().parts == scored.train_epoch().parts


# What a learner is shown


def test_the_pool_is_passed_over_once_before_any_image_returns(split: Split) -> None:
    start(split, epochs=1, epoch_images=192).train_epoch()
    index = torch.cat([step.from_pool().index for step in steps_of()])
    passes = index.view(3, 64)
    for one in passes:
        assert sorted(one.tolist()) == list(range(64))
    assert not torch.equal(passes[0], passes[1])


def test_labelled_images_come_once_a_pass_and_with_their_labels(split: Split) -> None:
    start(split, config=Config(labelled=8), epochs=1, epoch_images=24 * 8).train_epoch()
    batches = [step.from_labelled() for step in steps_of()]
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert sorted(index[:32]) == sorted(split.labelled.index)
    assert sorted(index[32:]) == sorted(split.labelled.index)
    assert np.array_equal(torch.cat([batch.labels() for batch in batches]).numpy(), split.labelled.data.label[index])


def test_fewer_labels_than_the_batch_wrap_around(split: Split) -> None:
    start(split, config=Config(labelled=40), epochs=1, epoch_images=56).train_epoch()
    index = steps_of()[0].from_labelled().index.numpy()
    counts = np.unique(index, return_counts=True)[1]
    assert len(counts) == 32
    assert counts.max() == 2


def test_labels_never_reach_the_pool(split: Split) -> None:
    start(split).train_epoch()
    assert all(step.from_pool().label is None for step in steps_of())
    assert all(step.labelled is None and step.episodes is None for step in steps_of())


def test_images_are_the_datas_own(split: Split) -> None:
    start(split).train_epoch()
    batch = steps_of()[3].from_pool()
    assert torch.equal(batch.images, split.train.images.take(batch.index))
    assert batch.images.dtype == torch.uint8
    assert batch.group is not None
    assert torch.equal(batch.group, torch.from_numpy(split.train.group)[batch.index])


def test_episodes_hold_distinct_images_of_their_classes(split: Split) -> None:
    start(split, config=Config(tasks=2), epochs=1).train_epoch()
    known = {image.numpy().tobytes(): k for k, image in enumerate(split.train.images.take(torch.arange(64)))}
    for step in steps_of():
        episodes = step.from_episodes()
        assert episodes.support_label.tolist() == [[0, 1]] * 2
        assert episodes.query_label.tolist() == [[0, 0, 1, 1]] * 2
        for support, query in zip(episodes.support, episodes.query, strict=True):
            rows = [known[image.numpy().tobytes()] for image in torch.cat([support, query])]
            assert len(set(rows)) == 6
            label = split.train.label[rows]
            assert (label >= 0).all()
            assert label[0] != label[1]
            assert label.tolist() == [label[0], label[1], label[0], label[0], label[1], label[1]]


def test_draws_are_new_in_each_step(split: Split) -> None:
    start(split).train_epoch()
    first, second = (step.from_pool().stream.fork("again").normal(3) for step in steps_of()[:2])
    assert not torch.equal(first, second)


def test_two_workers_are_shown_halves_of_one_workers_batch(split: Split) -> None:
    config = Config(labelled=8, tasks=2)
    trainings = [start(split, config=config, world=World(rank, size)) for rank, size in ((0, 1), (0, 2), (1, 2))]
    whole, left, right = (training.step_at(5, 0.5) for training in trainings)
    for part in ("pool", "labelled"):
        one, two = getattr(left, part), getattr(right, part)
        assert torch.equal(getattr(whole, part).index, torch.cat([one.index, two.index]))
        halves = torch.cat([one.stream.fork("x").normal(2), two.stream.fork("x").normal(2)])
        assert torch.equal(getattr(whole, part).stream.fork("x").normal(2), halves)
    assert torch.equal(whole.from_episodes().support, torch.cat([left.from_episodes().support, right.from_episodes().support]))


# What can go wrong


@pytest.mark.parametrize("poison", [0, 7, 60])
def test_a_loss_that_is_not_finite_ends_the_training(split: Split, poison: int) -> None:
    report = start(split, config=Config(poison=poison), epochs=1, epoch_images=1600).train_epoch()
    assert not report.finite
    assert len(Toy.log) == (50 if poison < 50 else 100)


def test_a_last_loss_that_is_not_finite_is_seen(split: Split) -> None:
    assert not start(split, config=Config(poison=9), epochs=1).train_epoch().finite


def test_bf16_is_used_where_the_device_computes_in_it(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"avx2": True}, 0.0), ({"avx512_bf16": True}, 1.0), ({"amx_bf16": True}, 1.0)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert computes_bf16(torch.device("cpu")) == bool(expected)
        assert start(split).train_epoch().parts["autocast"] == expected


def test_no_labels_is_one_clear_line(split: Split) -> None:
    hidden = dataclasses.replace(split.train, label=np.full(64, -1))
    with pytest.raises(TrainingError, match="learns from labels, and the training part of the label budget is empty"):
        start(dataclasses.replace(split, train=hidden), config=Config(labelled=4))


def test_a_batch_that_does_not_divide_is_one_clear_line(split: Split) -> None:
    with pytest.raises(TrainingError, match="pool batch must divide by the number of workers, got 16 over 3"):
        start(split, world=World(0, 3))


def test_another_methods_checkpoint_is_refused(split: Split) -> None:
    with pytest.raises(TrainingError, match="checkpoint must be of method toy two, got toy"):
        start(split, two_stages()).load(start(split).state())


def test_shares_must_fill_the_training(split: Split) -> None:
    broken = Method("broken", "selfsup", "none", "a toy", Config, stages=lambda config: (Stage("only", 0.5, Toy),))
    with pytest.raises(AssertionError, match=r"shares of broken's stages sum to 0\.5"):
        start(split, broken)


def test_a_method_is_a_learner_or_stages() -> None:
    with pytest.raises(TypeError, match="either a learner or stages"):
        Method("neither", "selfsup", "none", "a toy", Config)


def test_the_estimate_of_an_epochs_seconds_weighs_every_stage(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    training = start(split, two_stages(), Config(share=0.25), epochs=2, epoch_images=160)
    seconds = 0.0

    def steps_of_the_first_take_1_second_and_of_the_second_10() -> Mapping[str, Tensor]:
        nonlocal seconds
        seconds += 10.0 if isinstance(training.learner, Second) else 1.0
        return {}

    monkeypatch.setattr(training, "one_step", steps_of_the_first_take_1_second_and_of_the_second_10)
    monkeypatch.setattr(clock, "now", lambda device=None: seconds)
    steps = 160 / training.learner.batch_spec().images
    assert training.seconds_per_epoch() == pytest.approx(steps * (0.25 * 1 + 0.75 * 10), rel=1e-9)
