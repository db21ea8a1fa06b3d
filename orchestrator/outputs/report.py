"""``report.html``: one file that a person can read and send on. Everything from data is escaped; nothing is fetched."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from methods.data.records import Split
from methods.health import SIGNALS
from methods.parts.files import write_text
from orchestrator.describe import span
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.folder import RunFolder
from orchestrator.outputs.leaderboard import Finalist, Verdict, compare, finalists, ranked
from orchestrator.outputs.plots import central_figure, curves_figure, health_figure, knob_figure, methods_figure, told_signals
from orchestrator.study import Study


@dataclass(frozen=True)
class Picture:
    title: str
    uri: str


def write_report(folder: RunFolder, study: Study, split: Split, history: History, said: Verdict) -> None:
    """Writes the report from the journal, and from the pictures in the trials' folders."""
    board = finalists(history)
    space = study.space()
    names = list(space.methods)
    effects = {name: knob_figure(history, name, space.knobs[name]) for name in names}
    environment = Environment(
        loader=PackageLoader("orchestrator.outputs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda x: "" if x is None else f"{x:.1%}"
    environment.filters["span"] = span
    central = central_figure(history, space.knobs)
    health = health_figure(history, names, study.stop)
    html = environment.get_template("report.html").render(
        study=study,
        split=split,
        image=split.train.images.shape,
        test_size=len(split.test) if split.test is not None else None,
        verdict=said.sentences,
        board=[_finalist(f, board) for f in board],
        trials=ranked(history),
        ended=sum(t.status != "running" for t in history.search()),
        failed=[t for t in history.search() if t.status == "failed"],
        seconds=sum(t.seconds for t in history.trials.values()),
        methods_figure=Markup(methods_figure(history, board, names)),
        curves_figure=Markup(curves_figure(history, names)),
        health_figure=Markup(health) if health else None,
        signals={name: SIGNALS[name] for name in told_signals(history)},
        central_figure=Markup(central) if central else None,
        effects={name: Markup(figure) for name, figure in effects.items() if figure},
        knobs=space.knobs,
        pictures=pictures(folder, history),
        gallery=gallery(folder, history),
        versions=history.started.versions if history.started else {},
        describe=_values,
    )
    write_text(folder.report, html)


@dataclass(frozen=True)
class FinalistRow:
    """A finalist as the report shows it."""

    trial: Trial
    val: float
    seeds: int
    test_mean: float | None
    test_sd: float | None
    test_n: int
    low: float | None
    high: float | None
    gap: str


def _finalist(finalist: Finalist, board: list[Finalist]) -> FinalistRow:
    values = finalist.test_values()
    gap = ""
    if finalist is not board[0]:
        against = compare(board[0], finalist)
        gap = f"{-against.mean:+.1%}"
        if np.isfinite(against.low):
            gap += f" [{-against.high:+.1%}, {-against.low:+.1%}]"
    return FinalistRow(
        trial=finalist.trial,
        val=finalist.val,
        seeds=len(finalist.retrained),
        test_mean=float(np.mean(values)) if values else None,
        test_sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        test_n=len(values),
        low=finalist.tests[0].low if values else None,
        high=finalist.tests[0].high if values else None,
        gap=gap,
    )


def _values(trial: Trial) -> str:
    shown = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.spec.values.items())
    return ", ".join(shown)


def pictures(folder: RunFolder, history: History) -> list[Picture]:
    """One set of pictures a method: those of its best trial that has any."""
    shown: list[Picture] = []
    seen: set[str] = set()
    for trial in ranked(history):
        files = sorted((folder.trials / trial.spec.key).glob("*.png"))
        if trial.spec.method in seen or not files:
            continue
        seen.add(trial.spec.method)
        shown.extend(Picture(f"{trial.spec.method}: {file.stem}", _uri(file)) for file in files)
    return shown


def gallery(folder: RunFolder, history: History) -> list[Picture]:
    """What the chosen model makes of test images; empty before the end of a study."""
    if history.chosen is None:
        return []
    files = sorted(folder.gallery(history.chosen.key).glob("*.png"))
    return [Picture(file.stem, _uri(file)) for file in files]


def _uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
