"""TensorBoard: one HParams experiment with the union of all knobs, scalars per epoch, and a few pictures.

Tags: ``train/`` losses and their parts, ``health/`` the signals of ``methods.health`` and the classes of pseudo-labels as a
histogram, ``val/score`` and ``test/score``, ``pictures/`` what a method sees,
``gallery/`` what the best model makes of test images.

The experiment's schema stands at the root, because TensorBoard otherwise takes it from one arbitrary trial and the knobs of
the other methods vanish. A trial has a file of a few kilobytes for each of its scores, its end and its test.
"""

from __future__ import annotations

import io
import math
import time

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.summary_v2 import (
    Discrete,
    HParam,
    IntInterval,
    Metric,
    RealInterval,
    hparams_config_pb,
    hparams_pb,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import histogram_raw

from cluster.storage import Storage
from methods.health import SIGNALS
from orchestrator.engine.events import Ended, Event, Scored, Tested, Trained, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.folder import RunFolder
from orchestrator.prepare import rungs_of
from orchestrator.study import Study
from search_spaces.domains import Choice, Domain, Float, Int

VALIDATION, LOSS, TEST = "val/score", "train/loss", "test/score"

_FILE = "events.out.tfevents."
"""How TensorBoard tells event files from others."""


EVERY = 20.0
"""Seconds after which events that nothing else writes out are written."""


class EventFiles:
    """The event files of one run of TensorBoard's, numbered in the order in which TensorBoard reads them.

    A file is written whole and never again, as every value of a storage: what is added later goes into the next one.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.storage, self.prefix = storage, prefix
        names = (key.removeprefix(prefix) for key in storage.list(f"{prefix}{_FILE}"))
        self.number = max((int(name.split(".")[3]) + 1 for name in names), default=0)
        self._begin()

    def _begin(self) -> None:
        self._records, self._count, self.written = io.BytesIO(), 0, time.monotonic()
        self._add(Record(wall_time=time.time(), file_version="brain.Event:2"))

    def _add(self, record: Record) -> None:
        RecordWriter(self._records).write(record.SerializeToString())

    def add(self, summary: Summary, step: int = 0) -> None:
        """Takes a summary; ``flush`` writes it."""
        self._add(Record(wall_time=time.time(), step=step, summary=summary))
        self._count += 1

    def flush(self) -> None:
        """Writes what was added since the last time as one more file."""
        if not self._count:
            return
        while not self.storage.put_if_absent(f"{self.prefix}{_FILE}{self.number:06d}.labelwise", self._records.getbuffer()):
            self.number += 1
        self.number += 1
        self._begin()


class TensorBoardSink:
    """Writes ``tensorboard/`` as events come. Reopened for a resumed study, it adds to what is there."""

    def __init__(self, folder: RunFolder, study: Study) -> None:
        self.folder, self._top = folder, rungs_of(study)[-1]
        self._open: dict[str, EventFiles] = {}
        root = EventFiles(folder.storage, folder.TENSORBOARD)
        if root.number == 0:
            root.add(_experiment(study))
            root.flush()

    def __call__(self, event: Event, history: History) -> None:
        match event:
            case TrialStarted():
                self._files(history.trials[event.spec.key])
            case Trained():
                files = self._files(history.trials[event.key])
                for name, value in event.parts.items():
                    if math.isfinite(value):
                        files.add(_scalar(_tag(name), value), round(event.epoch))
                if sum(event.pseudo_labels):
                    files.add(_classes("health/pseudo_labels", event.pseudo_labels), round(event.epoch))
                files.add(_scalar("train/seconds", event.seconds), round(event.epoch))
                if time.monotonic() - files.written >= EVERY:
                    files.flush()
            case Scored():
                files = self._files(history.trials[event.key])
                files.add(_scalar(VALIDATION, event.rung.value), round(event.rung.epoch))
                # At the top the trial's end is told in the same breath, and one file holds both.
                if event.at != self._top:
                    files.flush()
            case Ended():
                self._end(history.trials[event.key])
            case Tested():
                self._files(history.trials[event.score.key]).add(_scalar(TEST, event.score.value))
                self._close(event.score.key)

    def _files(self, trial: Trial) -> EventFiles:
        """The trial's event files, which begin with its knobs."""
        spec = trial.spec
        if spec.key not in self._open:
            self._open[spec.key] = files = EventFiles(self.folder.storage, f"{self.folder.TENSORBOARD}{spec.key}/")
            if files.number == 0:
                which = {"encoder": spec.encoder} if spec.encoder else {}
                values = {"method": spec.method, **which, **{f"{spec.method}.{k}": v for k, v in spec.values.items()}}
                files.add(hparams_pb(values, trial_id=spec.key, start_time_secs=time.time()))
        return self._open[spec.key]

    def _close(self, key: str) -> None:
        self._open.pop(key).flush()

    def _end(self, trial: Trial) -> None:
        files = self._files(trial)
        _add_pictures(files, self.folder, "pictures", trial, self.folder.trial(trial.spec.key))
        status = api_pb2.STATUS_FAILURE if trial.status == "failed" else api_pb2.STATUS_SUCCESS
        files.add(_session_end(status))
        self._close(trial.spec.key)

    def close(self) -> None:
        for key in list(self._open):
            self._close(key)


def show_pictures(folder: RunFolder, trial: Trial, kind: str, prefix: str) -> None:
    """Adds the PNG files under ``prefix`` to what TensorBoard shows of an ended trial, under ``kind/METHOD/``."""
    files = EventFiles(folder.storage, f"{folder.TENSORBOARD}{trial.spec.key}/")
    _add_pictures(files, folder, kind, trial, prefix)
    files.flush()


def _add_pictures(files: EventFiles, folder: RunFolder, kind: str, trial: Trial, prefix: str) -> None:
    for title, png in folder.pictures(prefix).items():
        files.add(_picture(f"{kind}/{trial.spec.method}/{title}", png), round(trial.epochs))


def _experiment(study: Study) -> Summary:
    """The schema: the method, the encoder where several are compared, every knob of every method, and the metrics."""
    space = study.space()
    hparams = [HParam("method", Discrete(list(space.methods)))]
    if space.labels:
        hparams.append(HParam("encoder", Discrete(list(space.labels))))
    for method, declared in space.knobs.items():
        for name, item in declared.items():
            override = space.override(method, name)
            domain = override if isinstance(override, Float | Int | Choice) else item.legal
            hparams.append(HParam(f"{method}.{name}", _domain(domain), description=item.doc))
    metrics = [
        Metric(VALIDATION, display_name="validation score"),
        Metric(LOSS, display_name="training loss"),
        Metric(TEST, display_name="test score"),
    ]
    return hparams_config_pb(hparams=hparams, metrics=metrics)


def _domain(domain: Domain) -> object:
    if isinstance(domain, Choice):
        return Discrete(list(domain.options))
    if isinstance(domain, Int):
        return IntInterval(domain.low, domain.high)
    return RealInterval(float(domain.low), float(domain.high))


def _tag(part: str) -> str:
    """A part's tag: health signals apart from losses."""
    return f"health/{part}" if part in SIGNALS else f"train/{part}"


def _classes(tag: str, counts: list[int]) -> Summary:
    """A histogram with one bucket a class, centred on the class's number."""
    total = sum(counts)
    first = sum(k * n for k, n in enumerate(counts))
    second = sum(k * k * n for k, n in enumerate(counts))
    limits = [k + 0.5 for k in range(len(counts))]
    return histogram_raw(tag, -0.5, len(counts) - 0.5, total, first, second, limits, counts)


def _scalar(tag: str, value: float) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])


def _picture(tag: str, png: bytes) -> Summary:
    width, height = Image.open(io.BytesIO(png)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _session_end(status: int) -> Summary:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return Summary(
        value=[
            Summary.Value(
                tag=metadata.SESSION_END_INFO_TAG,
                tensor=metadata.NULL_TENSOR,
                metadata=metadata.create_summary_metadata(content),
            )
        ]
    )
