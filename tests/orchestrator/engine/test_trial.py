"""Segments inside a worker: a used slot is as good as a fresh one, failures are reports, and going on is exact."""

from __future__ import annotations

import dataclasses
import time
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
from methods.tasks import Classification
from methods.training.clock import Fidelity
from methods.world import World
from orchestrator.engine.examination import examine
from orchestrator.engine.records import Assignment, Report, Segment, SlotSetup, TrialSpec
from orchestrator.engine.trial import SegmentRun, load_training, training_of
from orchestrator.folder import load_tensors, save_tensors

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
        top=Fidelity("epochs", 3),
        epoch_images=32,
        precision="fp32",
        seed=0,
        task=Classification(),
        storage=LocalStorage(tmp_path),
        threads=1,
    )


def spec(method: str, key: str = "9", purpose: Any = "search", parent: str | None = None, **values: Any) -> TrialSpec:
    return TrialSpec(key, 9, method, {**({} if method == "broken" else QUICK), **values}, 5, purpose, parent=parent)


def given(work: TrialSpec, *stops: int, start: str | None = None, illustrate: bool = False) -> Assignment:
    """A trial to be trained to the first stop, and on in place to the others; by default to epochs 1 and 3."""
    to, *onward = (Fidelity("epochs", stop) for stop in stops or (1, 3))
    return Assignment(work, Segment(work.key, to, start, tuple(onward)), illustrate)


def go_on(run: SegmentRun, until: float) -> list[Report]:
    reports = [run.advance()]
    while reports[-1].status != "failed" and reports[-1].done.amount < until:
        reports.append(run.advance())
    return reports


def drive(run: SegmentRun, work: Assignment, until: float | None = None) -> list[Report]:
    """The reports to the last of the stops, or to ``until``, of a slot that is told to begin once."""
    run.begin(work)
    return go_on(run, until or (work.segment.to, *work.segment.onward)[-1].amount)


def checkpoint(reports: list[Report]) -> str:
    """The newest one. A trial that failed is told in its own words."""
    assert reports[-1].checkpoint is not None, reports[-1].reason
    return reports[-1].checkpoint


def told(reports: list[Report]) -> list[tuple[Any, ...]]:
    """A report without what depends on the clock, and without the trial's key."""
    return [
        (
            *(r.epoch, r.stage, dict(r.parts), r.images, r.status, r.done, r.reason, r.pseudo_labels, r.steps),
            r.checkpoint and r.checkpoint.split("/")[-1],
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
    return load_tensors(setup.storage, checkpoint(reports), "cpu")["training"]


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
    fresh = drive(SegmentRun(setup, World()), given(spec(method)))
    fresh_state = state(setup, fresh)
    assert [(r.key, r.epoch, r.done, r.status) for r in fresh] == [
        ("9", n, Fidelity("epochs", n), "running" if n == 2 else "reached") for n in (1, 2, 3)
    ]
    assert [r.rung is not None for r in fresh] == [True, False, True]
    used = SegmentRun(setup, World())
    drive(used, given(spec("simclr", "1")), until=1)
    drive(used, given(spec("broken", "2", weight_decay=0.3)))
    torch.manual_seed(123)
    np.random.seed(123)
    drive(used, given(spec("supervised", "3")), until=2)
    again = drive(used, given(spec(method)))
    assert {r.key for r in again} == {"9"}
    assert told(again) == told(fresh)
    assert_equal(state(setup, again), fresh_state)


@pytest.mark.parametrize("method", ["supervised", "noisy_student"])
@pytest.mark.parametrize("heard", [True, False])
def test_a_resumed_segment_goes_on_exactly(setup: SlotSetup, method: str, heard: bool) -> None:
    """Also where the study died before it heard of the segment's end: the segment is trained again, from where it started."""
    whole = drive(SegmentRun(setup, World()), given(spec(method, "0")))
    first = drive(SegmentRun(setup, World()), given(spec(method, "1")), until=1)
    if not heard:
        drive(SegmentRun(setup, World()), given(spec(method, "1"), 3, start=checkpoint(first)))
    resumed = drive(SegmentRun(setup, World()), given(spec(method, "1"), 3, start=checkpoint(first)))
    assert [r.epoch for r in resumed] == [2, 3]
    assert told(resumed) == told(whole)[1:]
    assert {r.key for r in resumed} == {"1"}
    assert resumed[0].train_seconds > first[-1].train_seconds, "what was trained before counts"
    assert_equal(state(setup, resumed), state(setup, whole))


def test_a_slot_that_holds_the_trial_goes_on_without_loading(setup: SlotSetup) -> None:
    whole = drive(SegmentRun(setup, World()), given(spec("supervised", "0"), 1, 2, 3))
    run = SegmentRun(setup, World())
    reports = drive(run, given(spec("supervised", "1"), 1))
    for stop in (2, 3):
        at = checkpoint(reports)
        setup.storage.delete(at)
        reports += drive(run, given(spec("supervised", "1"), stop, start=at))
    assert told(reports) == told(whole)
    assert [r.train_seconds for r in reports] == sorted({r.train_seconds for r in reports}), "the seconds go on"
    assert_equal(state(setup, reports), state(setup, whole))


def test_a_slot_that_is_elsewhere_than_the_segment_starts_loads(setup: SlotSetup) -> None:
    """It has trained past the checkpoint, whether its end was heard of or it was taken away inside a segment."""
    run = SegmentRun(setup, World())
    reports = drive(run, given(spec("supervised"), 1, 2, 3))
    for stop, until in ((2, 2), (3, 2)):
        run.begin(given(spec("supervised"), stop, start="trials/9/checkpoint-1.pt"))
        assert told(go_on(run, until))[0][0] == 2
    assert told(drive(run, given(spec("supervised"), 2, 3, start="trials/9/checkpoint-1.pt"))) == told(reports)[1:]
    # Inside a segment that goes on in place.
    assert [r.epoch for r in drive(run, given(spec("supervised"), 1, 3), until=2)] == [1, 2]
    assert told(drive(run, given(spec("supervised"), 2, start="trials/9/checkpoint-1.pt"))) == told(reports)[1:2]


@pytest.mark.parametrize("method", ["supervised", "noisy_student"])
def test_further_stops_are_trained_to_in_place(setup: SlotSetup, method: str) -> None:
    """Each is scored and saved, as if a slot had been told to begin there."""
    onward = drive(SegmentRun(setup, World()), given(spec(method, "0"), 1, 2, 3))
    assert [(r.status, r.checkpoint) for r in onward] == [("reached", f"trials/0/checkpoint-{n}.pt") for n in (1, 2, 3)]
    apart: list[Report] = []
    for stop in (1, 2, 3):
        start = checkpoint(apart) if apart else None
        apart += drive(SegmentRun(setup, World()), given(spec(method, "1"), stop, start=start))
    assert told(apart) == told(onward)
    assert_equal(state(setup, apart), state(setup, onward))
    assert_equal(state(setup, apart[:2]), state(setup, onward[:2]))


def test_a_fork_adopts_the_weights_of_its_parent(setup: SlotSetup) -> None:
    slot = SegmentRun(setup, World())
    parent = spec("supervised", "1", lr=0.01)
    start = checkpoint(drive(slot, given(parent, 1)))
    # Other steps in an epoch, and a setting of the optimizer that its state holds.
    fork = spec("supervised", "2", parent="1", lr=0.03, batch_size=32, weight_decay=0.1)
    # In the slot that holds the parent just there, and in another.
    found = [drive(run, given(fork, 2, 3, start=start)) for run in (slot, SegmentRun(setup, World()))]
    assert told(found[0]) == told(found[1])
    assert [(r.key, r.epoch) for r in found[0]] == [("2", 2), ("2", 3)]
    assert checkpoint(found[0]) == "trials/2/checkpoint-3.pt"

    expected = training_of(setup, fork, World())
    expected.adopt(load_tensors(setup.storage, start, "cpu")["training"])
    for _ in range(2):
        expected.train_epoch()
    assert_equal(state(setup, found[1]), expected.state())
    on = drive(SegmentRun(setup, World()), given(parent, 3, start=start))
    pairs = zip(_weights(setup, on), _weights(setup, found[1]), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs), "with its own knobs"
    assert setup.storage.list("trials/1/") == ["trials/1/checkpoint-1.pt", "trials/1/checkpoint-3.pt"]

    resumed = drive(SegmentRun(setup, World()), given(fork, 3, start="trials/2/checkpoint-2.pt"))
    assert told(resumed) == told(found[1])[1:]
    assert_equal(state(setup, resumed), state(setup, found[1]))


def test_seconds_of_a_fork_are_its_own_and_of_a_resumed_trial_go_on(setup: SlotSetup) -> None:
    start = checkpoint(drive(SegmentRun(setup, World()), given(spec("supervised", "1"), 1)))
    saved = load_tensors(setup.storage, start, "cpu")
    setup.storage.delete(start)
    save_tensors(setup.storage, start, {**saved, "seconds": 1000.0})
    for key, least, most in (("1", 1000, 1100), ("2", 0, 100)):
        (report,) = drive(SegmentRun(setup, World()), given(spec("supervised", key), 2, start=start))
        assert least < report.train_seconds < most


def test_a_fork_to_another_method_is_a_report(setup: SlotSetup) -> None:
    start = checkpoint(drive(SegmentRun(setup, World()), given(spec("supervised", "1"), 1)))
    (report,) = drive(SegmentRun(setup, World()), given(spec("simclr", "2", parent="1"), 2, start=start))
    assert report.status == "failed"
    assert report.reason.endswith("must be of method simclr, got supervised")


@pytest.mark.slow
def test_a_paused_trial_goes_on_elsewhere_in_milliseconds(setup: SlotSetup) -> None:
    start = checkpoint(drive(SegmentRun(setup, World()), given(spec("supervised", "1"), 1)))
    warm = SegmentRun(setup, World())
    took = []
    for _ in range(20):
        drive(warm, given(spec("supervised", "other"), 1))
        began = time.perf_counter()
        warm.begin(given(spec("supervised", "1"), 2, start=start))
        took.append(time.perf_counter() - began)
    assert warm.advance().epoch == 2, "it was loaded"
    assert min(took) <= 0.05


def test_a_failing_users_method_is_a_report_with_reason_and_trace(setup: SlotSetup, tmp_path: Path) -> None:
    run = SegmentRun(setup, World())
    (built,) = drive(run, given(spec("broken", "a", weight_decay=0.1)))
    assert (built.key, built.epoch, built.status, built.reason) == ("a", 0, "failed", "RuntimeError: no such thing")
    assert "no such thing\nas this" in (tmp_path / "trials" / "a" / "error-0.txt").read_text()
    reports = drive(run, given(spec("broken", "b", weight_decay=0.3)))
    assert (reports[-1].status, reports[-1].reason) == ("failed", "ZeroDivisionError: boom")
    assert "in loss" in (tmp_path / "trials" / "b" / "error-0.txt").read_text()
    assert drive(run, given(spec("supervised", "c")))[-1].status == "reached"
    assert not (tmp_path / "trials" / "c" / "error-0.txt").exists()


def test_a_loss_that_is_not_a_number_has_diverged(setup: SlotSetup) -> None:
    (report,) = drive(SegmentRun(setup, World()), given(spec("broken", "a", weight_decay=0.2)))
    assert report.status == "failed"
    assert report.reason.startswith("diverged: the loss was not a number in epoch 1")


def test_illegal_values_and_lost_checkpoints_are_reports(setup: SlotSetup) -> None:
    run = SegmentRun(setup, World())
    (report,) = drive(run, given(spec("supervised", "a", label_smoothing=2.0)))
    assert report.status == "failed"
    assert report.reason.startswith("supervised.label_smoothing must be a number from 0 to 0.99, got 2.0")
    (report,) = drive(run, given(spec("supervised", "b"), 2, start="trials/b/checkpoint-1.pt"))
    assert (report.status, report.reason.endswith("has no trials/b/checkpoint-1.pt")) == ("failed", True)


def test_an_objective_replaces_the_score_and_must_be_a_number(setup: SlotSetup) -> None:
    custom = dataclasses.replace(setup, objective=lambda score: -score.n, top=Fidelity("epochs", 1))
    (report,) = drive(SegmentRun(custom, World()), given(spec("supervised"), 1))
    assert report.rung is not None
    assert report.rung.value == -16
    broken = dataclasses.replace(setup, objective=lambda score: float("nan"), top=Fidelity("epochs", 1))
    (report,) = drive(SegmentRun(broken, World()), given(spec("supervised"), 1))
    assert (report.status, "the score is not a number" in report.reason) == ("failed", True)


def test_what_is_scored_and_saved(setup: SlotSetup, tmp_path: Path) -> None:
    run = SegmentRun(setup, World())
    one, two, last = drive(run, given(spec("supervised")))
    assert one.rung is not None
    assert last.rung is not None
    assert (one.rung.scored_on, one.rung.n) == ("validation", 16)
    assert last.rung.units is not None
    assert last.rung.value == pytest.approx(last.rung.units.mean())
    assert [r.checkpoint for r in (one, two, last)] == ["trials/9/checkpoint-1.pt", None, "trials/9/checkpoint-3.pt"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["checkpoint-1.pt", "checkpoint-3.pt"]
    probe = drive(run, given(spec("simclr")))[-1].rung
    assert probe is not None
    assert (probe.scored_on, probe.n) == ("validation", 16), "frozen or trained, all answer for the same images"
    assert probe.units is not None
    assert len(probe.units) == len(last.rung.units)


def test_a_fold_judges_with_its_own_labels_and_keeps_the_answers(setup: SlotSetup) -> None:
    for fold in range(4):
        work = dataclasses.replace(spec("supervised", f"f{fold}", purpose="fold"), fold=fold, folds=4)
        last = drive(SegmentRun(setup, World()), given(work))[-1]
        division = setup.task.folds(setup.split, 4, setup.seed)[fold]
        kept = load_tensors(setup.storage, f"trials/f{fold}/answers.pt", torch.device("cpu"))
        assert sorted(kept["index"].tolist()) == sorted(division.validation.index.tolist())
        right = (kept["logits"].argmax(1) == kept["label"]).float().mean()
        assert last.rung is not None
        assert last.rung.value == pytest.approx(float(right))


def test_the_searchs_own_model_is_judged_without_training(setup: SlotSetup) -> None:
    whole = drive(SegmentRun(setup, World()), given(spec("simclr", "o")))[-1]
    work = dataclasses.replace(spec("simclr", "o-fold0-0", purpose="fold", parent="o"), folds=2)
    (judged,) = drive(SegmentRun(setup, World()), given(work, 3, start="trials/o/checkpoint-3.pt"))
    assert not judged.reason
    assert (judged.status, judged.train_seconds, judged.images, judged.parts) == ("reached", 0.0, 0, {})
    assert judged.rung is not None
    assert whole.rung is not None
    # Of two folds the first is what the search validates on.
    assert np.array_equal(judged.rung.units, whole.rung.units)
    learner = [load_tensors(setup.storage, r.checkpoint, torch.device("cpu"))["training"]["learner"] for r in (whole, judged)]
    assert all(torch.equal(learner[0][name], learner[1][name]) for name in learner[0])


def test_a_refit_sees_the_whole_budget_and_is_not_scored(setup: SlotSetup) -> None:
    seen = setup.task.final_data(setup.split).label
    assert (seen >= 0).sum() == len(setup.split.labelled) + len(setup.split.validation)
    assert (setup.split.train.label >= 0).sum() == len(setup.split.labelled), "the study's own labels are left as they were"
    reports = drive(SegmentRun(setup, World()), given(spec("supervised", purpose="refit")))
    assert all(r.rung is None for r in reports)
    assert reports[-1].checkpoint is not None
    plain = drive(SegmentRun(setup, World()), given(spec("supervised", "p")))
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
        (*_, last) = drive(SegmentRun(own, World()), given(spec("clip")))
        assert last.rung is not None
        assert (last.rung.scored_on, last.rung.n) == ("validation", len(parts.validation))
        seen, final = parts.train.tokens, own.task.final_data(parts).tokens
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
    work = spec("supervised")
    path = checkpoint(drive(SegmentRun(setup, World()), given(work)))
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
    run = SegmentRun(dataclasses.replace(setup, protocol=OnOthers()), World())
    run.begin(given(spec(method)))
    report = run.advance()
    assert report.rung is not None, report.reason
    assert report.rung.scored_on == "elsewhere"
    assert report.rung.units is not None
    assert report.rung.units.tolist() == (np.arange(12) % 3 == 0).tolist()


def test_pictures_are_drawn_where_they_are_asked_for_at_the_trials_end(setup: SlotSetup) -> None:
    def drawn(key: str) -> list[str]:
        return [name for name in setup.storage.list(f"trials/{key}/") if name.endswith(".png")]

    plain = drive(SegmentRun(setup, World()), given(spec("simclr", "0")))
    run = SegmentRun(setup, World())
    shown = drive(run, given(spec("simclr", "1"), illustrate=True), until=2)
    assert drawn("1") == []
    shown += go_on(run, 3)
    assert drawn("0") == []
    assert len(drawn("1")) > 0
    assert setup.storage.get(drawn("1")[0]).startswith(b"\x89PNG")
    assert told(shown) == told(plain)
    assert_equal(state(setup, shown), state(setup, plain))


def test_a_model_that_costs_too_much_fails_before_it_is_trained(setup: SlotSetup) -> None:
    for limit, words in (
        ({"most_parameters": 1000}, "limit.parameters is 1,000"),
        ({"most_ms": 1e-6}, "limit.predict_ms is 1e-06"),
    ):
        (report,) = drive(SegmentRun(dataclasses.replace(setup, **limit), World()), given(spec("supervised"), 1))
        assert (report.status, report.epoch) == ("failed", 0)
        assert words in report.reason
    roomy = dataclasses.replace(setup, most_parameters=10**9, most_ms=1e6)
    assert drive(SegmentRun(roomy, World()), given(spec("supervised"), 1))[-1].status == "reached"
