"""The report's figures, as SVG text drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from methods.health import SIGNALS
from methods.protocols.confidence import Reliability
from orchestrator.engine.events import Predicted
from orchestrator.engine.finalists import Finalist
from orchestrator.engine.history import History
from orchestrator.engine.prediction import LearningCurve
from orchestrator.engine.records import Trial, TrialSpec
from orchestrator.study import Limit
from search_spaces.domains import Choice, Knob

CENTRAL = ("temperature", "momentum", "mask_ratio", "augmentation_strength")
"""The knobs that mean the same in every method, so that one plot shows their effect across methods."""

Colour = tuple[float, float, float]
_COLOURS: list[Colour] = [matplotlib.colors.to_rgb(c) for c in matplotlib.color_sequences["tab10"]]


def colours(methods: Iterable[str]) -> dict[str, Colour]:
    """One colour a method, the same in every figure."""
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(methods)}


def svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """The figure that ``draw`` draws, as an ``<svg>`` element."""
    with plt.rc_context({"svg.hashsalt": "labelwise", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _value(trial: Trial) -> float:
    assert trial.value is not None, "only scored trials are drawn"
    return trial.value


def methods_figure(history: History, board: list[Finalist], methods: list[str]) -> str:
    """Every trial's last score by method, and the finalists' test scores beside them."""
    return _scores_figure(history, board, methods, lambda spec: spec.method)


def encoders_figure(history: History, board: list[Finalist], labels: list[str]) -> str:
    """The same by encoder."""
    return _scores_figure(history, board, labels, lambda spec: spec.encoder)


def _scores_figure(history: History, board: list[Finalist], names: list[str], of: Callable[[TrialSpec], str]) -> str:
    paint = colours(names)
    scored: dict[str, list[Trial]] = defaultdict(list)
    for trial in history.search():
        if trial.value is not None:
            scored[of(trial.spec)].append(trial)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, name in enumerate(names):
            for trial in scored[name]:
                full = "full" if trial.status == "finished" else "none"
                axes.plot([_value(trial)], [row], "o", color=paint[name], fillstyle=full, alpha=0.8, markersize=6)
        for finalist in board:
            row = names.index(of(finalist.trial.spec))
            for score in finalist.tests:
                axes.plot(score.value, row + 0.25, marker="D", color="black", markersize=4, linestyle="none")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("score: validation ● full length, ○ stopped early; ◆ test of a finalist")
        _tidy(axes)

    return svg(draw, 7.5, 0.9 + 0.38 * len(names))


def learning_figure(curve: LearningCurve, labels: int, predicted: Predicted | None) -> str:
    """Score against labels: measured out of fold, predicted for the final model and for twice its labels."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(curve.labels, curve.score, "o-", color="#2563b0", linewidth=1)
        value = curve.at(labels)[0] if predicted is None else predicted.value
        if predicted is not None:
            axes.errorbar(
                [labels], [value], [[value - predicted.low], [predicted.high - value]], fmt="D", color="black", capsize=3
            )
        grid = np.geomspace(curve.labels[-1], 2 * labels, 30)
        ahead = [curve.at(n) for n in grid]
        middle = np.array([score for score, _ in ahead])
        spread = 1.645 * np.array([sd for _, sd in ahead])
        axes.plot(grid, middle, "--", color="#2563b0", linewidth=1)
        axes.fill_between(grid, middle - spread, np.minimum(middle + spread, 1), color="#2563b0", alpha=0.15, linewidth=0)
        axes.set(xscale="log", xlabel="labels", ylabel="score")
        ticks = sorted({*(round(n) for n in curve.labels), labels, 2 * labels})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        _tidy(axes)

    return svg(draw, 6.0, 3.0)


def coverage_figure(sure: Reliability) -> str:
    """Accuracy on the share of the test images that the model is surest of, against that share."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(sure.coverage, sure.accuracy, ".-", color="#2563b0", linewidth=1)
        axes.set(xlabel="share of the test images that are named, the surest first", ylabel="accuracy on them", xlim=(0, 1.02))
        _tidy(axes)

    return svg(draw, 6.0, 3.0)


def curves_figure(history: History, methods: list[str]) -> str:
    """Validation against epochs and against seconds, and each method's training loss relative to its first epoch."""
    paint = colours(methods)

    def draw(figure: Figure) -> None:
        by_epoch, by_seconds, loss = figure.subplots(1, 3)
        for trial in history.search():
            colour = paint[trial.spec.method]
            events = history.curve(trial.spec.key)
            seconds = {event.epoch: event.seconds for event in events}
            epochs = [rung.epoch for rung in trial.rungs]
            values = [rung.value for rung in trial.rungs]
            by_epoch.plot(epochs, values, ".-", color=colour, alpha=0.7, linewidth=1)
            by_seconds.plot([seconds.get(e, np.nan) for e in epochs], values, ".-", color=colour, alpha=0.7, linewidth=1)
            losses = [event.parts.get("loss", np.nan) for event in events]
            if losses and losses[0]:
                loss.plot([e.epoch for e in events], np.array(losses) / abs(losses[0]), color=colour, alpha=0.7, linewidth=1)
        by_epoch.set(xlabel="epochs", ylabel="validation score")
        by_seconds.set(xlabel="training seconds", ylabel="validation score")
        loss.set(xlabel="epochs", ylabel="training loss / first epoch's")
        for axes in (by_epoch, by_seconds, loss):
            _tidy(axes)
        handles = [plt.Line2D([], [], color=paint[name], label=name) for name in methods]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(methods), 6), frameon=False)

    return svg(draw, 10.5, 3.6)


def told_signals(history: History) -> list[str]:
    """The health signals that any trial of the search told."""
    told = {name for trial in history.search() for event in history.curve(trial.spec.key) for name in event.parts}
    return [name for name in SIGNALS if name in told]


def health_figure(history: History, methods: list[str], limits: Mapping[str, Limit]) -> str | None:
    """Every health signal against epochs, a line a trial of the search, limits dashed; None where no trial told any."""
    paint = colours(methods)
    curves = {trial.spec.key: history.curve(trial.spec.key) for trial in history.search()}
    shown = told_signals(history)
    if not shown:
        return None
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        used = set()
        for axes, name in zip(grid.flat, shown, strict=False):
            for trial in history.search():
                points = [(e.epoch, e.parts[name]) for e in curves[trial.spec.key] if name in e.parts]
                if points:
                    axes.plot(*zip(*points, strict=True), ".-", color=paint[trial.spec.method], alpha=0.7, linewidth=1)
                    used.add(trial.spec.method)
            limit = limits.get(name)
            for bound in (limit.below, limit.above) if limit is not None else ():
                if bound is not None:
                    axes.axhline(bound, color="grey", linestyle="--", linewidth=1)
            axes.set(title=name, xlabel="epochs")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_ylim(bottom=0)
            _tidy(axes)
        handles = [plt.Line2D([], [], color=paint[name], label=name) for name in methods if name in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)

    return svg(draw, 2.6 * columns, 2.1 * rows + 0.5)


def knob_figure(history: History, method: str, declared: Mapping[str, Knob]) -> str | None:
    """How a method's score goes with each of its knobs, at the trials' last rung; None with fewer than 3 scored trials."""
    trials = [t for t in history.search() if t.spec.method == method and t.value is not None]
    varied = [k for k in declared if len({t.spec.values[k] for t in trials if k in t.spec.values}) > 1]
    if len(trials) < 3 or not varied:
        return None
    columns = min(len(varied), 4)
    rows = -(-len(varied) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(varied) :]:
            axes.set_visible(False)
        for axes, name in zip(grid.flat, varied, strict=False):
            _scatter(axes, declared[name], [t for t in trials if name in t.spec.values])
        for axes in grid[:, 0]:
            axes.set_ylabel("validation")

    return svg(draw, 2.6 * columns, 2.1 * rows)


def _scatter(axes: Axes, item: Knob, trials: list[Trial], colour: Colour = _COLOURS[0]) -> None:
    categorical = isinstance(item.search or item.legal, Choice)
    for trial in trials:
        x = trial.spec.values[item.name]
        full = "full" if trial.status == "finished" else "none"
        axes.plot([str(x) if categorical else x], [_value(trial)], "o", color=colour, fillstyle=full, markersize=5)
    if not categorical:
        _three_ticks(axes, [float(t.spec.values[item.name]) for t in trials], (item.search or item.legal).scale == "log")
    axes.set_xlabel(item.name)
    _tidy(axes)


def _three_ticks(axes: Axes, values: list[float], log: bool) -> None:
    """The ends and the middle of what was tried: more numbers would run into each other in so small a panel."""
    low, high = min(values), max(values)
    if log:
        axes.set_xscale("log")
    middle = float(np.sqrt(low * high)) if log else (low + high) / 2
    axes.set_xticks([low, middle, high], [f"{tick:.4g}" for tick in (low, middle, high)])
    axes.set_xticks([], minor=True)


def central_figure(history: History, knobs: Mapping[str, Mapping[str, Knob]]) -> str | None:
    """The four knobs that keep their meaning across methods: score above the method's own mean, one panel a knob."""
    methods = list(knobs)
    paint = colours(methods)
    points: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for method in methods:
        trials = [t for t in history.search() if t.spec.method == method and t.value is not None]
        if len(trials) < 2:
            continue
        mean = float(np.mean([t.value for t in trials if t.value is not None]))
        for trial in trials:
            for name in CENTRAL:
                if name in trial.spec.values and trial.value is not None:
                    points[name].append((method, float(trial.spec.values[name]), trial.value - mean))
    shown = [name for name in CENTRAL if len({x for _, x, _ in points[name]}) > 1]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, name in zip(grid, shown, strict=True):
            for method, x, y in points[name]:
                axes.plot(x, y, "o", color=paint[method], markersize=5, alpha=0.8)
            axes.axhline(0, color="grey", linewidth=0.8)
            axes.set_xlabel(name)
            _tidy(axes)
        grid[0].set_ylabel("score above the method's mean")
        used = sorted({m for name in shown for m, _, _ in points[name]}, key=methods.index)
        handles = [plt.Line2D([], [], color=paint[m], marker="o", linestyle="none", label=m) for m in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(used), 6), frameon=False)

    return svg(draw, 2.8 * len(shown) + 1, 3.0)
