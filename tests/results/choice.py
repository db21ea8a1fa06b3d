"""How well does a study choose? Whole studies, after which every method's best configuration is refitted and tested alike.

    python tests/results/choice.py --data DIR [--seeds 2] [--only digits mnist] [--threads 2]
    python tests/results/choice.py --page          # rebuilds the page from the rows alone

Every study appends one line to ``tests/results/choice.jsonl`` as it ends; those that are there are skipped, so that the command
goes on where it was stopped. DIR holds CIFAR-10 and MNIST as class folders in zips (cifar10-jpeg-20k-train.zip,
cifar10-jpeg-5k-test.zip, mnist-train.zip, mnist-test.zip) and emoji-google.zip.

**Regret** is what the winner's test score lies below that of the best method, without the luck of the test: the best method is
picked on one half of the test images and compared with the winner on the other half, swapped, and averaged. **Half labels** is
the judgement of earlier versions on the same trials: frozen encoders by a probe that is cross-validated over the whole budget,
others by the half of the labels that they did not learn from. (Its three retrainings of three finalists are not made here.)
The winner is whom the rule of today chooses by the recorded answers of the folds; **by score alone** is the choice without a
baseline. Nothing is chosen by test images but in this page.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from cluster.connect import connect
from methods.batch import seed_of
from methods.data.records import LabelledSubset
from methods.data.sources import load
from methods.parts.files import write_text
from methods.parts.modes import threads
from methods.protocols.contract import Trained, difference_of
from methods.world import World
from orchestrator import Study, run
from orchestrator.allocation.standings import BASELINE
from orchestrator.engine.finalists import Units, finalists, leads
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.engine.records import Purpose, SlotSetup, Trial, TrialSpec
from orchestrator.engine.selection import ranked
from orchestrator.engine.trial import trained, training_of
from orchestrator.prepare import plan_for, prepare

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "choice.jsonl", HERE / "choice.md"

METHODS = ["supervised", "pseudo_label", "fixmatch", "mean_teacher", "simclr", "rotation"]

SETTINGS: dict[str, Any] = {"methods": METHODS, "trials": 14, "epochs": 9, "epoch_images": 1280, "precision": "fp32"}


@dataclass(frozen=True)
class Data:
    """A data set of the table: its fields in a study, and the label counts."""

    fields: Mapping[str, Any]
    labels: Sequence[int]


DATA = {
    "digits": Data({"data": "digits", "test": 0.5}, (40, 100, 250)),
    "scripts": Data({"data": "scripts", "test": 0.5}, (56, 112, 280)),
    "mnist": Data({"data": "mnist-train.zip", "test": "mnist-test.zip"}, (40, 100, 250)),
    "cifar10": Data({"data": "cifar10-jpeg-20k-train.zip", "test": "cifar10-jpeg-5k-test.zip"}, (40, 100, 250)),
    "emoji": Data({"data": "emoji-google.zip", "test": 0.5, "size": 32}, (45, 90, 225)),
}


@dataclass(frozen=True)
class Candidate:
    """A method's best configuration by the search.

    Attributes:
        trial, method: of the search.
        validation: the search's own score.
        half_labels: what the rule of earlier versions looks at.
        right: of each test image whether the refitted model names it, bits in base64.
        judged: by fold, of each label that judged a finalist whether it was named, a row of 0 and 1; empty of others.
    """

    trial: int
    method: str
    validation: float
    half_labels: float
    right: str
    judged: Mapping[str, str] = field(default_factory=dict)

    def units(self) -> NDArray[np.float64]:
        """Of each label that judged whether it was named, fold by fold."""
        return np.array([float(bit) for fold in sorted(self.judged, key=int) for bit in self.judged[fold]])

    def bits(self, n: int) -> NDArray[np.bool_]:
        return np.unpackbits(np.frombuffer(base64.b64decode(self.right), np.uint8), count=n).astype(bool)


@dataclass(frozen=True)
class Row:
    """One study.

    Attributes:
        data, labels, seed: what was studied.
        tests: images of the test.
        winner: trial number of the configuration that the study handed back.
        candidates: the winner's configuration and every method's best by the search.
        predicted: value, low and high of the study's prediction, and the score that its own test gave.
        seconds: of the search's and of the selection's trainings, scoring included.
        plan: finalists, folds, and how many of the folds judged.
        versions: of what computed.
    """

    data: str
    labels: int
    seed: int
    tests: int
    winner: int
    candidates: tuple[Candidate, ...]
    predicted: Mapping[str, float]
    seconds: Mapping[str, float]
    plan: tuple[int, int, int] = (0, 0, 0)
    versions: str = field(default_factory=lambda: f"labelwise {version('labelwise')}, torch {torch.__version__}")

    def candidate(self, trial: int) -> Candidate:
        return next(c for c in self.candidates if c.trial == trial)


def read_rows() -> list[Row]:
    """Complete lines alone: a line torn by a kill is left out."""
    if not ROWS.exists():
        return []
    lines = ROWS.read_text(encoding="utf-8").split("\n")[:-1]
    raw = [json.loads(line) for line in lines]
    return [
        Row(
            **{
                **each,
                "candidates": tuple(Candidate(**c) for c in each["candidates"]),
                "plan": tuple(each.get("plan", (0, 0, 0))),
            }
        )
        for each in raw
    ]


def append(row: Row) -> None:
    whole = ROWS.read_text(encoding="utf-8").rpartition("\n")[0] if ROWS.exists() else ""
    write_text(ROWS, (whole + "\n" if whole else "") + json.dumps(asdict(row)) + "\n")


def study_of(name: str, labels: int, seed: int, folder: Path) -> Study:
    fields = dict(DATA[name].fields)
    for key in ("data", "test"):
        if isinstance(fields[key], str) and fields[key].endswith(".zip"):
            fields[key] = str(folder / fields[key])
    if name == "scripts":
        fields["data"] = scripts()
    return Study(**fields, **SETTINGS, labels=labels, seed=seed)


def scripts() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The embedded ``glyphs`` by their script, 14 classes: images uint8 [N, H, W, C], and the number of each one's script."""
    drawn = load("glyphs").train
    assert drawn.group is not None
    images = drawn.images.take(torch.arange(len(drawn))).permute(0, 2, 3, 1)
    return images.contiguous().numpy(), drawn.group


def busy(trials: Sequence[Trial]) -> float:
    return sum(t.seconds + sum(r.seconds for r in t.rungs) for t in trials)


def measure(name: str, labels: int, seed: int, folder: Path) -> Row:
    """Runs the study, then refits and tests every method's best configuration."""
    study = study_of(name, labels, seed, folder)
    with tempfile.TemporaryDirectory() as place:
        result = run(study, Path(place) / "run")
        history = History(read_journal(result.storage))
        prepared = prepare(study)
        setup = prepared.setup(result.storage, plan_for(study, _nodes()))
        board = finalists(history)
        wanted = {board[0].trial.spec.trial: board[0].trial}
        for method in study.method_names:
            of_it = ranked([t for t in history.search() if t.status == "finished" and t.spec.method == method])
            wanted |= {t.spec.trial: t for t in of_it[:1]}
        assert prepared.split.test is not None
        judged = {f.trial.spec.trial: _row_of(f.units) for f in board}
        tested = [_candidate(t, setup, prepared.split.test) for t in wanted.values()]
        found = [replace(each, judged=judged.get(each.trial, {})) for each in tested]
        finals = history.finals
        assert finals is not None
        said = history.predicted
        assert said is not None
        predicted = {"value": said.value, "low": said.low, "high": said.high, "test": float(np.mean(board[0].test_values()))}
        search = history.search()
        spent = {"search": busy(search), "selection": busy([t for t in history.trials.values() if t not in search])}
        plan = len(finals.trials), finals.folds, finals.rounds
        winner = board[0].trial.spec.trial
        return Row(name, labels, seed, len(prepared.split.test), winner, tuple(found), predicted, spent, plan)


def _row_of(units: Units) -> dict[str, str]:
    return {str(fold): "".join(f"{each:.0f}" for each in values) for fold, values in units.items()}


def _nodes() -> Any:
    with connect(None) as connection:
        return connection.nodes


def _candidate(trial: Trial, setup: SlotSetup, test: LabelledSubset) -> Candidate:
    """The configuration trained on the whole budget with a seed of its own, and its answers to the test."""
    spec = trial.spec
    learns = setup.methods[spec.method].reads_labels(setup.split.train)
    purpose: Purpose = "refit" if learns else "search"
    work = TrialSpec("again", spec.trial, spec.method, spec.values, seed_of(setup.seed, "again"), purpose, encoder=spec.encoder)
    with threads(torch.get_num_threads()):
        training = training_of(setup, work, World())
        while training.done.amount < setup.top.amount:
            if not training.train(setup.top.amount).finite:
                nothing = np.packbits(np.zeros(len(test), dtype=bool)).tobytes()
                return Candidate(spec.trial, spec.method, trial.value or 0.0, 0.0, base64.b64encode(nothing).decode())
        model: Trained = trained(training)
        score = setup.task.test(setup.protocol, model, setup.split, test, learns, setup.seed)
        half = trial.value or 0.0
        if not learns:
            half = setup.protocol.score(model, setup.split.budget(), None, setup.seed).value
    assert score.correct is not None
    right = score.correct[np.argsort(score.index)]
    return Candidate(spec.trial, spec.method, trial.value or 0.0, half, base64.b64encode(np.packbits(right).tobytes()).decode())


@dataclass(frozen=True)
class Regret:
    """What a choice lost, in points of accuracy, and the lower end of its paired 90% interval over the test images."""

    points: float
    low: float


def regret(row: Row, chosen: int) -> Regret:
    """Of the candidate of number ``chosen`` against the best, each picked on one half of the test and compared on the other."""
    answers = {c.trial: c.bits(row.tests) for c in row.candidates}
    half = np.random.default_rng(0).permutation(row.tests) % 2 == 0
    each = np.zeros(row.tests)
    for picks in (half, ~half):
        best = max(answers, key=lambda trial: answers[trial][picks].mean())
        each[~picks] = answers[best][~picks].astype(float) - answers[chosen][~picks]
    found = difference_of(each, True, 0.9)
    return Regret(100 * found.mean, 100 * found.low)


def below_supervised(row: Row) -> Regret:
    winner, own = row.candidate(chosen(row)), next((c for c in row.candidates if c.method == BASELINE), None)
    if own is None or winner.method == BASELINE:
        return Regret(0.0, 0.0)
    found = difference_of(own.bits(row.tests).astype(float) - winner.bits(row.tests), True, 0.9)
    return Regret(max(0.0, 100 * found.mean), 100 * found.low)


def earlier_rule(row: Row) -> int:
    return max(row.candidates, key=lambda c: c.half_labels).trial


def chosen(row: Row, baseline: str | None = BASELINE) -> int:
    """Whom the rule of the product chooses by what the folds of this row answered: rows outlive rules.

    Args:
        baseline: as ``selection.baseline``; None chooses by score alone.
    """
    most = max(len(c.judged) for c in row.candidates)
    if not most:
        return row.winner
    units = {c.trial: c.units() for c in row.candidates if len(c.judged) == most}
    own = next((c.trial for c in row.candidates if c.method == baseline and c.trial in units), None)
    passing = [t for t in units if own is None or t == own or leads(units[t] - units[own])]
    return max(passing, key=lambda t: (units[t].mean(), -t))


def page(rows: Sequence[Row]) -> str:
    """The generated page."""
    return "\n".join(_lines(sorted(rows, key=lambda r: (r.data, r.labels, r.seed)))) + "\n"


def _told(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f} (n {len(values)})"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.2f} ± {half:.2f} (sd {np.std(values, ddof=1):.2f}, n {len(values)})"


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "# How well a study chooses"
    yield ""
    yield f"Written by `python tests/results/choice.py --page` from {len(rows)} studies; its first lines say what is"
    yield "measured."
    yield f"Settings: {json.dumps(SETTINGS)}. {rows[0].versions if rows else ''}"
    yield ""
    if not rows:
        return
    few = [r for r in rows if r.labels < 200]
    many = [r for r in rows if r.labels >= 200]
    yield "| figure | value |"
    yield "|---|---|"
    for name, part in (("under 200 labels", few), ("200 labels and more", many)):
        if part:
            yield f"| regret, {name}, points | {_told([regret(r, chosen(r)).points for r in part])} |"
            yield f"| regret by score alone, {name} | {_told([regret(r, chosen(r, None)).points for r in part])} |"
            yield f"| regret of half labels, {name} | {_told([regret(r, earlier_rule(r)).points for r in part])} |"
    worst = sum(regret(r, chosen(r)).low > 3 for r in rows)
    yield f"| studies whose regret is above 3 points, by the lower end of the 90% interval | {worst} of {len(rows)} |"
    below = [below_supervised(r) for r in rows]
    yield f"| winner below the study's own `supervised`, points | {_told([b.points for b in below])} |"
    yield f"| ... by over 1 point, lower end | {sum(b.low > 1 for b in below)} of {len(rows)} |"
    # A prediction is of the winner of its time.
    same = [r for r in rows if chosen(r) == r.winner]
    inside = [r.predicted["low"] <= r.predicted["test"] <= r.predicted["high"] for r in same]
    yield f"| 90% prediction covers the test, where the same winner is chosen today | {sum(inside)} of {len(same)} |"
    widths = [(r.predicted["high"] - r.predicted["low"]) / width_by_chance(r) for r in same]
    yield f"| its width over that of the test's chance and seeds alone, median | {np.median(widths):.2f} |"
    shares = [r.seconds["selection"] / (r.seconds["search"] + r.seconds["selection"]) for r in rows]
    yield f"| share of selection and refit in the trainings' seconds | {_told(shares)} |"
    yield ""
    yield (
        "| data | labels | seed | winner | regret | by score alone | half labels | below supervised | study's winner |"
        " predicted | its test | each method's test |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in sorted(rows, key=lambda r: -regret(r, chosen(r)).points):
        said = r.predicted
        others = ", ".join(f"{c.method} {100 * c.bits(r.tests).mean():.1f}" for c in r.candidates)
        lost = [*(regret(r, trial) for trial in (chosen(r), chosen(r, None), earlier_rule(r))), below_supervised(r)]
        yield (
            f"| {r.data} | {r.labels} | {r.seed} | {r.candidate(chosen(r)).method} |"
            f" {' | '.join(f'{each.points:.1f}' for each in lost)} | {r.candidate(r.winner).method} |"
            f" {100 * said['value']:.1f} [{100 * said['low']:.1f}, {100 * said['high']:.1f}] | {100 * said['test']:.1f} |"
            f" {others} |"
        )


SEED_SD = 0.015
"""Of a training's test score over seeds, where it is not measured here."""


def width_by_chance(row: Row) -> float:
    """2 x 1.645 sd of a test of as many images and of the seed."""
    p = row.predicted["test"]
    return 2 * 1.645 * math.sqrt(p * (1 - p) / row.tests + SEED_SD**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if not given.page:
        for seed in range(given.seeds):
            for place in range(3):
                for name in given.only:
                    _fill(name, DATA[name].labels[place], seed, given.data)
    write_text(PAGE, page(read_rows()))


def _fill(name: str, labels: int, seed: int, folder: Path) -> None:
    if any((r.data, r.labels, r.seed) == (name, labels, seed) for r in read_rows()):
        return
    began = time.monotonic()
    with connect("local", cpus=2):
        row = measure(name, labels, seed, folder)
    append(row)
    lost, seconds = regret(row, chosen(row)).points, time.monotonic() - began
    print(f"{name} {labels} {seed}: {row.candidate(chosen(row)).method}, regret {lost:.1f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
