"""TensorBoard: one HParams experiment with the union of all knobs, scalars per epoch, and a few pictures.

Tags: ``train/`` losses and their parts, ``health/`` the signals of ``methods.health`` and the classes of pseudo-labels as a
histogram, ``val/score`` and ``test/score``, ``pictures/`` what a method sees,
``gallery/`` what the best model makes of test images.

The experiment's schema stands at the root, because TensorBoard otherwise takes it from one arbitrary trial and the knobs of
the other methods vanish. A trial's file is closed when the trial ends, and holds a few kilobytes.
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

from PIL import Image
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
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import histogram_raw

from methods.health import SIGNALS
from orchestrator.engine.events import Ended, Event, Scored, Tested, Trained, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.folder import RunFolder
from orchestrator.study import Study
from search_spaces.domains import Choice, Domain, Float, Int

VALIDATION, LOSS, TEST = "val/score", "train/loss", "test/score"


class TensorBoardSink:
    """Writes ``tensorboard/`` as events come. Reopened for a resumed study, it adds to what is there."""

    def __init__(self, folder: RunFolder, study: Study) -> None:
        self.folder = folder
        self._writers: dict[str, FileWriter] = {}
        if not folder.tensorboard.exists():
            root = FileWriter(str(folder.tensorboard))
            root.add_summary(_experiment(study))
            root.close()

    def __call__(self, event: Event, history: History) -> None:
        match event:
            case TrialStarted():
                self._start(history.trials[event.spec.key])
            case Trained():
                writer = self._writer(event.key)
                for name, value in event.parts.items():
                    if math.isfinite(value):
                        writer.add_summary(_scalar(_tag(name), value), event.epoch)
                if sum(event.pseudo_labels):
                    writer.add_summary(_classes("health/pseudo_labels", event.pseudo_labels), event.epoch)
                writer.add_summary(_scalar("train/seconds", event.seconds), event.epoch)
            case Scored():
                self._writer(event.key).add_summary(_scalar(VALIDATION, event.rung.value), event.rung.epoch)
            case Ended():
                self._end(history.trials[event.key])
            case Tested():
                self._writer(event.score.key).add_summary(_scalar(TEST, event.score.value), 0)
                self._close(event.score.key)

    def _writer(self, key: str) -> FileWriter:
        if key not in self._writers:
            self._writers[key] = FileWriter(str(self.folder.tensorboard / key))
        return self._writers[key]

    def _close(self, key: str) -> None:
        self._writers.pop(key).close()

    def _start(self, trial: Trial) -> None:
        spec = trial.spec
        values = {"method": spec.method, **{f"{spec.method}.{k}": v for k, v in spec.values.items()}}
        self._writer(spec.key).add_summary(hparams_pb(values, trial_id=spec.key, start_time_secs=time.time()))

    def _end(self, trial: Trial) -> None:
        writer = self._writer(trial.spec.key)
        _add_pictures(writer, "pictures", trial, self.folder.trials / trial.spec.key)
        status = api_pb2.STATUS_FAILURE if trial.status == "failed" else api_pb2.STATUS_SUCCESS
        writer.add_summary(_session_end(status))
        self._close(trial.spec.key)

    def close(self) -> None:
        for key in list(self._writers):
            self._close(key)


def show_pictures(folder: RunFolder, trial: Trial, kind: str, place: Path) -> None:
    """Adds the PNG files in ``place`` to what TensorBoard shows of an ended trial, under ``kind/METHOD/``."""
    writer = FileWriter(str(folder.tensorboard / trial.spec.key))
    _add_pictures(writer, kind, trial, place)
    writer.close()


def _add_pictures(writer: FileWriter, kind: str, trial: Trial, place: Path) -> None:
    for picture in sorted(place.glob("*.png")):
        writer.add_summary(_picture(f"{kind}/{trial.spec.method}/{picture.stem}", picture.read_bytes()), trial.epochs)


def _experiment(study: Study) -> Summary:
    """The schema: the method, every knob of every method, and the metrics."""
    space = study.space()
    hparams = [HParam("method", Discrete(list(space.methods)))]
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
