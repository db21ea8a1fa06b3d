"""TensorBoard's own readers see a study's events whole, in order, and together with those of a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as GetExperiment

from cluster.storage import LocalStorage
from methods.training.clock import Fidelity
from orchestrator.engine import events, records
from orchestrator.engine.events import Ended, Event, Reached, Scored, SegmentStarted, Trained, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Rung, Segment, TrialSpec
from orchestrator.folder import RunFolder
from orchestrator.outputs import tensorboard
from orchestrator.outputs.tensorboard import TensorBoardSink
from orchestrator.study import Study

STUDY = Study(data="digits", methods=["supervised", "simclr"])
SPEC = TrialSpec("0000", 0, "simclr", {"temperature": 0.25, "lr": 0.1}, 1)


def trained(epoch: int) -> Trained:
    return Trained("0000", epoch, float(epoch), {"loss": 1 / epoch})


def scored(epoch: int) -> Scored:
    return Scored("0000", Rung(epoch, epoch / 10, 10, 0, 1, "validation", None, 0.1), Fidelity("epochs", epoch))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(LocalStorage(tmp_path))


@pytest.fixture
def tell(folder: RunFolder) -> Callable[..., list[str]]:
    """tell(*events): tells a sink, opened anew in place of one that was killed; the keys of the trial's files."""
    history = History()
    sinks: list[TensorBoardSink] = []

    def call(*told: Event, killed: bool = False) -> list[str]:
        if killed or not sinks:
            sinks.append(TensorBoardSink(folder, STUDY))
        for event in told:
            history.add(event)
            sinks[-1](event, history)
        return folder.storage.list("tensorboard/0000/")

    return call


def read(folder: RunFolder, run: str = "0000") -> EventAccumulator:
    return EventAccumulator(str(folder.path / "tensorboard" / run)).Reload()


def steps(folder: RunFolder, tag: str) -> list[int]:
    return [event.step for event in read(folder).Scalars(tag)]


def test_files_are_written_at_scores_and_at_the_end(folder: RunFolder, tell: Callable[..., list[str]]) -> None:
    assert tell(TrialStarted(SPEC), trained(1), trained(2)) == []
    first = tell(scored(2))
    assert first == ["tensorboard/0000/events.out.tfevents.000000.labelwise"]
    assert (steps(folder, "train/loss"), steps(folder, "val/score")) == ([1, 2], [2])
    assert len(tell(trained(3), Ended("0000", "finished", ""))) == 2
    assert len(tell(events.Tested(records.TestScore("0000", 0, 0.5, 10, 0.4, 0.6)))) == 3
    found = read(folder)
    assert [e.value for e in found.Scalars("train/loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [e.value for e in found.Scalars("test/score")] == [0.5]
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(found.summary_metadata)


def test_a_trial_that_pauses_and_goes_on_is_one_run(folder: RunFolder, tell: Callable[..., list[str]]) -> None:
    """Segments are the engine's own: TensorBoard sees one curve."""
    one, two = (Fidelity("epochs", epoch) for epoch in (1, 2))
    tell(TrialStarted(SPEC), SegmentStarted(Segment("0000", one)))
    paused = tell(trained(1), scored(1), Reached("0000", one, "trials/0000/checkpoint-1.pt"))
    assert tell(SegmentStarted(Segment("0000", two, "trials/0000/checkpoint-1.pt"))) == paused
    tell(trained(2), scored(2), Reached("0000", two, "trials/0000/checkpoint-2.pt"), Ended("0000", "finished", ""))
    assert (steps(folder, "train/loss"), steps(folder, "val/score")) == ([1, 2], [1, 2])
    kinds = {content for content in read(folder).summary_metadata if content.startswith("_hparams_/")}
    assert kinds == {"_hparams_/session_start_info", "_hparams_/session_end_info"}


def test_a_resumed_study_adds_files_and_rewrites_none(folder: RunFolder, tell: Callable[..., list[str]]) -> None:
    tell(TrialStarted(SPEC), trained(1), scored(1), trained(2))
    before = {key: folder.storage.get(key) for key in folder.storage.list()}
    # What was not yet written is trained and told again.
    tell(trained(2), scored(2), Ended("0000", "finished", ""), killed=True)
    assert {key: folder.storage.get(key) for key in before} == before
    assert len([key for key in folder.storage.list("tensorboard/") if key.count("/") == 1]) == 1, "one experiment"
    assert (steps(folder, "train/loss"), steps(folder, "val/score")) == ([1, 2], [1, 2])


def test_a_trial_that_left_nothing_before_a_kill_still_tells_its_knobs(
    folder: RunFolder, tell: Callable[..., list[str]]
) -> None:
    tell(TrialStarted(SPEC), trained(1))
    tell(trained(1), scored(1), killed=True)
    assert "_hparams_/session_start_info" in read(folder).summary_metadata


def test_files_stay_in_order_beyond_ten(folder: RunFolder, tell: Callable[..., list[str]]) -> None:
    tell(TrialStarted(SPEC))
    for epoch in range(1, 13):
        tell(trained(epoch), scored(epoch), killed=epoch % 5 == 0)
    assert steps(folder, "val/score") == list(range(1, 13))


def test_two_writers_never_write_the_same_file(folder: RunFolder) -> None:
    one, two = (tensorboard.EventFiles(folder.storage, "tensorboard/0000/") for _ in range(2))
    for step, files in enumerate((one, two, two, one), start=1):
        files.add(tensorboard._scalar("x", 0.0), step)
        files.flush()
        files.flush()
    assert len(folder.storage.list("tensorboard/0000/")) == 4
    assert steps(folder, "x") == [1, 2, 3, 4]


def test_a_long_stage_without_scores_is_seen_while_it_trains(
    folder: RunFolder, tell: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(tensorboard.time, "monotonic", lambda: now[0])
    tell(TrialStarted(SPEC))
    found = []
    for epoch in range(1, 7):
        now[0] += 8
        found.append(len(tell(trained(epoch))))
    assert found == [0, 0, 1, 1, 1, 2], "at most every 20 seconds"
    assert steps(folder, "train/loss") == [1, 2, 3, 4, 5, 6]


def test_the_hparams_plugin_lists_the_trials_with_their_knobs_and_scores(
    folder: RunFolder, tell: Callable[..., list[str]]
) -> None:
    other: Any = TrialSpec("0001", 1, "supervised", {"lr": 0.3}, 1)
    tell(TrialStarted(SPEC), TrialStarted(other), trained(1), scored(1), trained(2), scored(2), Ended("0000", "finished", ""))
    tell(Trained("0001", 1, 1.0, {"loss": 2.0}), Ended("0001", "failed", "x"))
    logs = str(folder.path / "tensorboard")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(logs)
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, logs)
    context = Context(TBContext(data_provider=provider, logdir=logs))
    experiment = GetExperiment(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    named = {info.name for info in experiment.hparam_infos}
    assert named == {"method"} | {f"{m}.{k}" for m, knobs in STUDY.space().knobs.items() for k in knobs}
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN],
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="val/score"))],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    by_name = {group.name: group for group in groups}
    assert by_name.keys() == {"0000", "0001"}
    assert by_name["0000"].hparams["simclr.temperature"].number_value == 0.25
    assert by_name["0000"].hparams["method"].string_value == "simclr"
    values = {m.name.tag: m.value for m in by_name["0000"].metric_values}
    assert (values["val/score"], values["train/loss"]) == (pytest.approx(0.2), 0.5)
    assert by_name["0001"].sessions[0].status == api_pb2.STATUS_FAILURE
