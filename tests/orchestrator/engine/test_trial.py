"""Trials inside a worker: a used slot is as good as a fresh one, failures are reports, and a resumed job is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from cluster.storage import LocalStorage
from methods.batch import BatchSpec, Step
from methods.catalogue import CATALOGUE
from methods.contracts import Context, Learner, Loss, Method, Optimizer, SharedConfig
from methods.data.budget import split
from methods.data.records import ImageSet, LabelledSubset, Source, Split
from methods.parts.encoders import Encoder, EncoderSpec
from methods.protocols import protocol
from methods.protocols.contract import Protocol, Score, Trained, accuracy
from methods.world import World
from orchestrator.engine.records import Report, SlotSetup, TrialSpec
from orchestrator.engine.trial import TrialRun, examine, load_training, whole_budget
from orchestrator.folder import load_tensors

QUICK: dict[str, Any] = {"batch_size": 16}


@dataclass(frozen=True)
class OnOthers(Protocol):
    """Twelve images of another data set, whose positions happen to be those of the study's images too."""

    name: ClassVar[str] = "on_others"
    elsewhere: ClassVar[bool] = True

    def score(self, trained: Trained, fit: LabelledSubset, ask: LabelledSubset | None, seed: int) -> Score:
        right = np.arange(12) % 3 == 0
        return accuracy(self.name, "accuracy on others", np.arange(12)[::-1], right[::-1], 0.0)


class Broken(Learner):
    """A user's method that goes wrong in the way its config says."""

    def __init__(self, config: SharedConfig, context: Context) -> None:
        super().__init__()
        self.backbone = context.new_encoder()
        self.config = config
        if config.weight_decay == 0.1:
            raise RuntimeError("no such thing\nas this")

    def batch_spec(self) -> BatchSpec:
        return BatchSpec(pool=16)

    def loss(self, step: Step) -> Loss:
        total = self.backbone(step.from_pool().images).mean()
        if self.config.weight_decay == 0.2:
            return Loss(total * float("nan"))
        if step.number >= 2:
            raise ZeroDivisionError("boom")
        return Loss(total)

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return Optimizer("adamw", 1e-3)


BROKEN = Method("broken", "baseline", "none", "a method that fails", SharedConfig, Broken)


@pytest.fixture
def setup(make_split: Callable[..., Split], tmp_path: Path) -> SlotSetup:
    methods = {name: CATALOGUE[name] for name in ("supervised", "simclr", "noisy_student")}
    return SlotSetup(
        split=dataclasses.replace(make_split(4, 10, 5, 12), test=None),
        methods={**methods, "broken": BROKEN},
        encoder=EncoderSpec("resnet_small"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=protocol("predict"),
        objective=None,
        rungs=(1, 3),
        epoch_images=32,
        precision="fp32",
        seed=0,
        folder=str(tmp_path),
        threads=1,
    )


def job(method: str, key: str = "9", checkpoint: str | None = None, purpose: Any = "search", **values: Any) -> TrialSpec:
    return TrialSpec(key, 9, method, {**({} if method == "broken" else QUICK), **values}, 5, purpose, checkpoint)


def drive(run: TrialRun, work: TrialSpec, until: int = 99) -> list[Report]:
    run.begin(work)
    reports: list[Report] = []
    while not reports or (reports[-1].status == "running" and reports[-1].epoch < until):
        reports.append(run.advance())
    return reports


def told(reports: list[Report]) -> list[tuple[Any, ...]]:
    """A report without what depends on the clock."""
    return [
        (
            *(r.key, r.epoch, r.stage, dict(r.parts), r.images, r.status, r.reason),
            r.rung
            and (
                r.rung.epoch,
                r.rung.value,
                r.rung.n,
                r.rung.low,
                r.rung.high,
                r.rung.scored_on,
                np.asarray(r.rung.units).tolist(),
            ),
        )
        for r in reports
    ]


def state(setup: SlotSetup, reports: list[Report]) -> dict[str, Any]:
    assert reports[-1].checkpoint is not None
    return load_tensors(LocalStorage(setup.folder), reports[-1].checkpoint, "cpu")["training"]


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("method", ["supervised", "simclr", "noisy_student"])
def test_a_used_slot_gives_bitwise_what_a_fresh_one_does(setup: SlotSetup, method: str) -> None:
    fresh = drive(TrialRun(setup, World()), job(method))
    fresh_state = state(setup, fresh)
    assert [r.epoch for r in fresh] == [1, 2, 3]
    assert [r.rung is not None for r in fresh][1:] == [False, True]
    used = TrialRun(setup, World())
    drive(used, job("simclr", "1"), until=1)
    drive(used, job("broken", "2", weight_decay=0.3))
    torch.manual_seed(123)
    np.random.seed(123)
    drive(used, job("supervised", "3"), until=2)
    again = drive(used, job(method))
    assert told(again) == told(fresh)
    assert_equal(state(setup, again), fresh_state)


@pytest.mark.parametrize("method", ["supervised", "noisy_student"])
@pytest.mark.parametrize("heard", [True, False])
def test_a_resumed_job_goes_on_exactly(setup: SlotSetup, method: str, heard: bool) -> None:
    """Its checkpoint's epoch is told again, since the study may have died before it heard of it; nothing is trained twice."""
    whole = drive(TrialRun(setup, World()), job(method, "0"))
    expected = state(setup, whole)
    first = drive(TrialRun(setup, World()), job(method, "1"), until=1 if heard else 99)
    resumed = drive(TrialRun(setup, World()), job(method, "1", checkpoint=first[-1].checkpoint))
    start = first[-1].epoch
    assert [r.epoch for r in resumed] == list(range(start, 4))
    assert [t[1:] for t in told(resumed)] == [t[1:] for t in told(whole) if t[1] >= start]
    assert resumed[0].train_seconds == pytest.approx(first[-1].train_seconds)
    assert_equal(state(setup, resumed), expected)


def test_a_failing_users_method_is_a_report_with_reason_and_trace(setup: SlotSetup, tmp_path: Path) -> None:
    run = TrialRun(setup, World())
    (built,) = drive(run, job("broken", "a", weight_decay=0.1))
    assert (built.key, built.epoch, built.status, built.reason) == ("a", 0, "failed", "RuntimeError: no such thing")
    assert "no such thing\nas this" in (tmp_path / "trials" / "a" / "error-0.txt").read_text()
    reports = drive(run, job("broken", "b", weight_decay=0.3))
    assert (reports[-1].status, reports[-1].reason) == ("failed", "ZeroDivisionError: boom")
    assert "in loss" in (tmp_path / "trials" / "b" / "error-0.txt").read_text()
    assert drive(run, job("supervised", "c"))[-1].status == "finished"
    assert not (tmp_path / "trials" / "c" / "error-0.txt").exists()


def test_a_loss_that_is_not_a_number_has_diverged(setup: SlotSetup) -> None:
    (report,) = drive(TrialRun(setup, World()), job("broken", "a", weight_decay=0.2))
    assert report.status == "failed"
    assert report.reason.startswith("diverged: the loss was not a number in epoch 1")


def test_illegal_values_and_lost_checkpoints_are_reports(setup: SlotSetup) -> None:
    run = TrialRun(setup, World())
    (report,) = drive(run, job("supervised", "a", label_smoothing=2.0))
    assert report.status == "failed"
    assert report.reason.startswith("supervised.label_smoothing must be a number from 0 to 0.99, got 2.0")
    (report,) = drive(run, job("supervised", "b", checkpoint="nowhere.pt"))
    assert (report.status, report.reason.split(":")[0]) == ("failed", "MissingKey")


def test_an_objective_replaces_the_score_and_must_be_a_number(setup: SlotSetup) -> None:
    custom = dataclasses.replace(setup, objective=lambda score: -score.n, rungs=(1,))
    (report,) = drive(TrialRun(custom, World()), job("supervised"))
    assert report.rung is not None
    assert report.rung.value == -16
    broken = dataclasses.replace(setup, objective=lambda score: float("nan"), rungs=(1,))
    (report,) = drive(TrialRun(broken, World()), job("supervised"))
    assert (report.status, "the score is not a number" in report.reason) == ("failed", True)


def test_what_is_scored_and_saved(setup: SlotSetup) -> None:
    run = TrialRun(setup, World())
    one, _, last = drive(run, job("supervised"))
    assert one.rung is not None
    assert last.rung is not None
    assert (one.rung.scored_on, one.rung.n) == ("validation", 16)
    assert last.rung.units is not None
    assert last.rung.value == pytest.approx(last.rung.units.mean())
    assert one.checkpoint == last.checkpoint
    assert not list(Path(setup.folder).rglob("*.tmp"))
    probe = drive(run, job("simclr"))[-1].rung
    assert probe is not None
    assert (probe.scored_on, probe.n) == ("budget", 36)
    assert probe.units is not None
    assert len(probe.units) == len(last.rung.units) == 16, "both keep their answers to the validation images, and pair"


def test_a_refit_sees_the_whole_budget_and_is_not_scored(setup: SlotSetup) -> None:
    seen = whole_budget(setup).label
    assert (seen >= 0).sum() == len(setup.split.labelled) + len(setup.split.validation)
    assert (setup.split.train.label >= 0).sum() == len(setup.split.labelled), "the study's own labels are left as they were"
    reports = drive(TrialRun(setup, World()), job("supervised", purpose="refit"))
    assert all(r.rung is None for r in reports)
    assert reports[-1].checkpoint is not None
    plain = drive(TrialRun(setup, World()), job("supervised", "p"))
    assert not all(torch.equal(a, b) for a, b in zip(_weights(setup, reports), _weights(setup, plain), strict=True))


def test_captions_that_are_labels_count_as_labels(setup: SlotSetup) -> None:
    """clip from class names, or from captions that spell them out: judged on validation labels, refitted with them."""
    pool = setup.split.train
    label = np.arange(len(pool)) % 4
    told = tuple(f"a view of {'abcd'[k]}" for k in label)
    for captions in ((), told):
        source = Source(ImageSet(pool.images, label, tuple("abcd"), captions=captions, caption_labels=bool(captions)))
        parts = split(source, labels=16, test=0.25)
        own = dataclasses.replace(setup, split=parts, methods={"clip": CATALOGUE["clip"]})
        (*_, last) = drive(TrialRun(own, World()), job("clip"))
        assert last.rung is not None
        assert (last.rung.scored_on, last.rung.n) == ("validation", len(parts.validation))
        seen, final = parts.train.tokens, whole_budget(own).tokens
        assert (seen is None) == (final is None) == (not captions)
        if seen is not None and final is not None:
            assert not seen[parts.validation.index].any()
            assert final[parts.budget().index].any(axis=1).all()
            assert final.any(axis=1).sum() == 16


def _weights(setup: SlotSetup, reports: list[Report]) -> list[torch.Tensor]:
    return list(state(setup, reports)["learner"].values())


def test_the_saved_model_is_the_one_that_is_tested(setup: SlotSetup, make_split: Callable[..., Split]) -> None:
    test = make_split(4, 10, 5, 12).test
    assert test is not None
    work = job("supervised")
    path = drive(TrialRun(setup, World()), work)[-1].checkpoint
    assert path is not None
    score = examine(setup, work, path, test, torch.device("cpu"))
    model: nn.Module | None = load_training(setup, work, path, torch.device("cpu")).learner.predictor()
    assert model is not None
    with torch.no_grad():
        said = model.eval()(test.data.images.take(torch.from_numpy(test.index))).argmax(1).numpy()
    assert score.value == pytest.approx((said == test.label).mean())
    assert score.n == 40


@pytest.mark.parametrize("method", ["supervised", "simclr"])
def test_images_of_another_data_set_pair_whole(setup: SlotSetup, method: str) -> None:
    """Their positions say nothing of which of the study's images validate."""
    run = TrialRun(dataclasses.replace(setup, protocol=OnOthers()), World())
    run.begin(job(method))
    report = run.advance()
    assert report.rung is not None, report.reason
    assert report.rung.scored_on == "elsewhere"
    assert report.rung.units is not None
    assert report.rung.units.tolist() == (np.arange(12) % 3 == 0).tolist()
