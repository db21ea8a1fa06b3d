"""``report.html``: one file that a person can read and send on. Everything from data is escaped; nothing is fetched."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from methods.health import SIGNALS
from orchestrator.care.records import KINDS, Care
from orchestrator.care.sentences import summary
from orchestrator.describe import span
from orchestrator.engine.finalists import Finalist, compare, finalists
from orchestrator.engine.history import History
from orchestrator.engine.prediction import learning_curve
from orchestrator.engine.records import Trial
from orchestrator.features import read_index
from orchestrator.folder import RunFolder
from orchestrator.outputs.encoders import encoder_rows
from orchestrator.outputs.ensemble import reliability_of, scaling_of
from orchestrator.outputs.leaderboard import ranked
from orchestrator.outputs.plots import (
    central_figure,
    coverage_figure,
    curves_figure,
    encoders_figure,
    health_figure,
    knob_figure,
    learning_figure,
    methods_figure,
    told_signals,
)
from orchestrator.outputs.shares import shares_of
from orchestrator.outputs.verdict import Verdict, abstaining, judges
from orchestrator.prepare import Prepared


@dataclass(frozen=True)
class Picture:
    title: str
    uri: str


def write_report(folder: RunFolder, prepared: Prepared, history: History, said: Verdict, care: Care | None = None) -> None:
    """Writes the report from the journal, from the pictures in the trials' folders, and from what was found in the data."""
    study, split, facts = prepared.study, prepared.split, prepared.facts
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
    sure = reliability_of(board, history)
    html = environment.get_template("report.html").render(
        study=study,
        split=split,
        image=split.train.images.shape,
        test_size=len(split.test) if split.test is not None else None,
        verdict=said.sentences,
        facts=facts,
        board=[_finalist(f, board) for f in board],
        trials=ranked(history),
        ended=sum(t.status != "running" for t in history.search()),
        failed=[t for t in history.search() if t.status == "failed"],
        seconds=sum(t.seconds for t in history.trials.values()),
        encoders=encoder_rows(prepared, read_index(folder.storage)),
        encoders_figure=Markup(encoders_figure(history, board, list(space.labels))) if space.labels else None,
        methods_figure=Markup(methods_figure(history, board, names)),
        shares=str(shares_of(study, history)),
        sure=sure,
        abstaining=abstaining(sure) if sure is not None else None,
        scaling=scaling_of(history, history.ensembled is not None and history.ensembled.exported),
        coverage_figure=Markup(coverage_figure(sure)) if sure is not None else None,
        learning_figure=_learning(board, history, facts.labels),
        curves_figure=Markup(curves_figure(history, names)),
        proposed=history.proposed,
        health_figure=Markup(health) if health else None,
        signals={name: SIGNALS[name] for name in told_signals(history)},
        central_figure=Markup(central) if central else None,
        effects={name: Markup(figure) for name, figure in effects.items() if figure},
        knobs=space.knobs,
        pictures=pictures(folder, history),
        gallery=gallery(folder, history),
        care=() if care is None else summary(care),
        sheets=[] if care is None else sheets(folder),
        versions=history.started.versions if history.started else {},
        describe=_values,
    )
    folder.write_text(folder.REPORT, html)


def _learning(board: list[Finalist], history: History, labels: int) -> Markup | None:
    """The winner's label learning curve, where its labels were divided into folds."""
    if not board or not labels or board[0].folds < 2 or not board[0].units:
        return None
    return Markup(learning_figure(learning_curve(board[0], history, labels), labels, history.predicted))


@dataclass(frozen=True)
class FinalistRow:
    """A finalist as the report shows it."""

    trial: Trial
    val: float
    judges: str
    test_mean: float | None
    test_sd: float | None
    test_n: int
    low: float | None
    high: float | None
    gap: str
    tested: str


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
        judges=judges(finalist),
        test_mean=float(np.mean(values)) if values else None,
        test_sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        test_n=len(values),
        low=finalist.tests[0].low if values else None,
        high=finalist.tests[0].high if values else None,
        gap=gap,
        tested=finalist.tested_as,
    )


def _values(trial: Trial) -> str:
    shown = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.spec.values.items())
    which = (f"encoder={trial.spec.encoder}",) if trial.spec.encoder else ()
    return ", ".join((*which, *shown))


def pictures(folder: RunFolder, history: History) -> list[Picture]:
    """One set of pictures a method: those of its best trial that has any."""
    drawn = {key.split("/")[1] for key in folder.storage.list(folder.TRIALS) if key.endswith(".png")}
    shown: list[Picture] = []
    seen: set[str] = set()
    for trial in ranked(history):
        if trial.spec.method in seen or trial.spec.key not in drawn:
            continue
        seen.add(trial.spec.method)
        found = folder.pictures(folder.trial(trial.spec.key))
        shown.extend(Picture(f"{trial.spec.title}: {title}", _uri(png)) for title, png in found.items())
    return shown


def gallery(folder: RunFolder, history: History) -> list[Picture]:
    """What the chosen model makes of test images; empty before the end of a study."""
    if history.chosen is None:
        return []
    found = folder.pictures(folder.gallery(history.chosen.key))
    return [Picture(title, _uri(png)) for title, png in found.items()]


def sheets(folder: RunFolder) -> list[Picture]:
    """The picture sheets of what was found in the data."""
    found = folder.pictures(folder.CARE)
    return [Picture(what, _uri(found[kind])) for kind, what in KINDS.items() if kind in found]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
