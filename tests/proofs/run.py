"""The proof tables: every method on real images, at a fixed number of training seconds, against its baseline.

    python tests/proofs/run.py selfsup --data DIR [--seconds 120] [--seeds 3] [--methods simclr moco] [--threads 2]
    python tests/proofs/run.py --tables          # rebuilds tests/proofs/README.md from the rows alone

Each run appends one row to ``tests/proofs/TABLE.csv`` as it ends; runs whose row is there already are skipped, so the
command goes on where it was stopped. DIR holds CIFAR-10 as JPEG (cifar10-jpeg-20k-train.zip, cifar10-jpeg-5k-test.zip) and
Omniglot's small background sets (omniglot-background-small1.zip, -small2.zip). Knobs are the methods' defaults unless stated.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from methods import CATALOGUE, EncoderSpec, Training, TrainSettings
from methods.data.budget import split
from methods.data.episodic import split_few_shot
from methods.data.records import Labelled, Split, TrainData
from methods.data.sources import load
from methods.parts.encoders import build_encoder, parameter_count
from methods.protocols import FewShot, Linear, Predict
from methods.protocols.contract import Trained
from search_spaces.domains import build

HERE = Path(__file__).parent
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Row:
    """One training and its scores.

    Attributes:
        table, method, seed: what ran; ``seed`` also draws the labels, so rows of one seed are paired.
        encoder, parameters: what was trained.
        budget: training seconds allowed; ``seconds`` spent, ``images`` drawn in them.
        scores: by measure, in [0, 1].
    """

    table: str
    method: str
    seed: int
    encoder: str
    parameters: int
    budget: float
    seconds: float
    images: int
    scores: Mapping[str, float]
    torch: str
    machine: str


@dataclass(frozen=True)
class Bar:
    """What a row must reach: ``points`` above ``baseline`` on ``measure``, or ``least`` in itself; None asks for neither."""

    measure: str
    baseline: str | None = None
    points: float | None = None
    least: float | None = None


def _bars() -> dict[str, dict[str, Bar]]:
    probe = "probe 10,000"
    selfsup = {
        **dict.fromkeys(("simclr", "moco", "pirl", "cmc", "instance_discrimination"), 10.0),
        **dict.fromkeys(("byol", "barlow_twins", "vicreg", "dino"), 7.0),
        "rotation": 9.0,
        **dict.fromkeys(
            (
                "jigsaw", "relative_patch", "exemplar", "cpc", "deep_infomax", "bag_of_words", "colorization", "split_brain",
            ),
            5.0,
        ),
        **dict.fromkeys(("autoencoder", "denoising_autoencoder", "inpainting", "mae", "rotation_gan"), 2.0),
    }  # fmt: skip
    above = dict.fromkeys(("uda", "remixmatch", "mean_teacher", "noisy_student"), 0.0) | {"fixmatch": 5.0}
    others = (
        "mixup", "cutout", "pseudo_label", "entropy_minimization", "vat", "ladder", "pi_model", "temporal_ensembling",
        "mixmatch", "co_training", "s4l", "simclr_v2",
    )  # fmt: skip
    few = {"prototypical": 0.95, "matching": 0.95, "maml": 0.90}
    rest = (
        "finetune_baseline", "cosine_classifier", "siamese", "meta_sgd", "anil", "reptile", "selfsup_fewshot",
        "metric_learning",
    )  # fmt: skip
    across = "5-way 1-shot across"
    return {
        "selfsup": {name: Bar(probe, UNTRAINED, points) for name, points in selfsup.items()},
        "semisup": {
            "supervised": Bar("test"),
            **{name: Bar("test", "supervised", points) for name, points in above.items()},
            **{name: Bar("test", "supervised") for name in others},
        },
        "fewshot": {
            **{name: Bar(across, UNTRAINED, 0.0, least) for name, least in few.items()},
            **{name: Bar(across, UNTRAINED, 0.0) for name in rest},
        },
    }


BARS = _bars()


@cache
def cifar(data: Path, labels: int, seed: int) -> Split:
    train = load(str(data / "cifar10-jpeg-20k-train.zip"))
    return split(train, labels=labels, test=load(str(data / "cifar10-jpeg-5k-test.zip"), size=(32, 32), channels=3), seed=seed)


@cache
def omniglot(data: Path) -> Split:
    train = load(str(data / "omniglot-background-small1.zip"), size=28)
    test = load(str(data / "omniglot-background-small2.zip"), size=28)
    groups = [name for name in test.train.groups if name not in train.train.groups]
    return split_few_shot(train, test=test, test_groups=groups, seed=0)


def within_seconds(name: str, data: TrainData, encoder: EncoderSpec, seed: int, seconds: float) -> Training:
    """A training whose schedule ends after about ``seconds``: its length is set by a few measured steps."""
    method = CATALOGUE[name]
    config = build(method.config, {})
    probe = Training(method, config, data, TrainSettings(1, encoder, seed))
    each = probe.seconds_per_epoch(6) / probe.images_per_epoch
    return Training(method, config, data, TrainSettings(1, encoder, seed, max(int(seconds / each), 1)))


def _spec(table: str, name: str) -> EncoderSpec:
    if name != UNTRAINED and CATALOGUE[name].encoder == "vit":
        return EncoderSpec("vit_tiny")
    return EncoderSpec("conv4" if table == "fewshot" else "resnet_small")


def _untrained(data: TrainData, spec: EncoderSpec, seed: int) -> Trained:
    torch.manual_seed(seed)
    return Trained(build_encoder(spec, data.images.shape, data.mean, data.std))


def _probes(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    assert parts.test is not None
    few = _first_per_class(parts.budget(), 25)
    return {
        "probe 10,000": Linear().score(model, parts.budget(), parts.test, seed).value,
        "probe 250": Linear().score(model, few, parts.test, seed).value,
    }


def _first_per_class(labelled: Labelled, each: int) -> Labelled:
    rows = np.concatenate([np.flatnonzero(labelled.label == k)[:each] for k in np.unique(labelled.label)])
    return Labelled(labelled.data, labelled.index[rows], labelled.label[rows])


def _test(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    return {"test": Predict().score(model, parts.budget(), parts.test, seed).value}


def _episodes(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    protocols = {
        "5-way 1-shot across": FewShot(5, 1, 15, 600),
        "5-way 5-shot across": FewShot(5, 5, 15, 600),
        "20-way 1-shot across": FewShot(20, 1, 10, 600),
        "20-way 1-shot within": FewShot(20, 1, 10, 600, within_group=True),
    }
    return {name: p.score(model, parts.labelled, parts.test, seed).value for name, p in protocols.items()}


Scoring = Callable[[Trained, Split, int], dict[str, float]]
SCORING: dict[str, Scoring] = {"selfsup": _probes, "semisup": _test, "fewshot": _episodes}


def _parts(table: str, data: Path, seed: int) -> Split:
    if table == "fewshot":
        return omniglot(data)
    if table == "selfsup":
        return cifar(data, 10_000, 0)
    # Proofs compare methods at their defaults, so no label is kept for validation: all 250 train.
    parts = cifar(data, 250, seed)
    label = parts.train.label.copy()
    label[parts.validation.index] = parts.validation.label
    return dataclasses.replace(parts, train=dataclasses.replace(parts.train, label=label))


def run(table: str, name: str, seed: int, data: Path, seconds: float) -> Row:
    """One row: trains, and scores on the test images."""
    parts = _parts(table, data, seed)
    base, _, of = name.partition(" ")
    spec = EncoderSpec(of) if of else _spec(table, base)
    if base == UNTRAINED:
        model, spent, images = _untrained(parts.train, spec, seed), 0.0, 0
    else:
        training = within_seconds(base, parts.train, spec, seed, seconds)
        report = training.train_epoch()
        learner = training.learner
        model = Trained(learner.encoder(), learner.predictor(), learner, training.method.uses_labels)
        spent, images = report.seconds, report.images
    scores = SCORING[table](model, parts, seed)
    size = parameter_count(model.encoder)
    return Row(table, name, seed, spec.name, size, seconds, spent, images, scores, torch.__version__, platform.machine())


def path_of(table: str) -> Path:
    return HERE / f"{table}.csv"


def read(table: str) -> list[Row]:
    if not path_of(table).exists():
        return []
    with path_of(table).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    fixed = [f.name for f in dataclasses.fields(Row) if f.name != "scores"]
    return [
        Row(
            r["table"], r["method"], int(r["seed"]), r["encoder"], int(r["parameters"]), float(r["budget"]),
            float(r["seconds"]), int(r["images"]), {k: float(v) for k, v in r.items() if k not in fixed},
            r["torch"], r["machine"],
        )
        for r in rows
    ]  # fmt: skip


def append(row: Row) -> None:
    flat = {**dataclasses.asdict(row), **{name: f"{value:.6f}" for name, value in row.scores.items()}}
    del flat["scores"]
    new = not path_of(row.table).exists()
    with path_of(row.table).open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat))
        if new:
            writer.writeheader()
        writer.writerow(flat)


def _summary(rows: Sequence[Row], name: str, measure: str) -> dict[int, float]:
    return {row.seed: row.scores[measure] for row in rows if row.method == name}


def table_lines(table: str, rows: Sequence[Row]) -> Iterator[str]:
    """The table in Markdown: n, mean, sd, the difference to the baseline with its t-interval, and whether the bar is met."""
    measures = list(rows[0].scores)
    yield f"| method | encoder (parameters) | n | seconds | {' | '.join(measures)} | above baseline, 95% | bar | met |"
    yield "|" + "---|" * (len(measures) + 7)
    for name in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == name]
        cells = []
        for measure in measures:
            values = [100 * row.scores[measure] for row in mine]
            sd = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{sd}")
        first = mine[0]
        gap, bar, met = _judged(table, rows, name)
        seconds = np.mean([row.seconds for row in mine])
        head = f"| {name} | {first.encoder} ({first.parameters / 1e6:.2f} M) | {len(mine)} | {seconds:.0f}"
        yield f"{head} | {' | '.join(cells)} | {gap} | {bar} | {met} |"


def _judged(table: str, rows: Sequence[Row], name: str) -> tuple[str, str, str]:
    bar = BARS[table].get(name)
    if bar is None or (bar.baseline is None and bar.least is None):
        return "", "", ""
    own = _summary(rows, name, bar.measure)
    baseline = bar.baseline
    if baseline == UNTRAINED:
        encoder = next(row.encoder for row in rows if row.method == name)
        baseline = f"{UNTRAINED} {encoder}"
    base = _summary(rows, baseline, bar.measure) if baseline else {}
    paired = np.array([100 * (own[s] - base[s]) for s in sorted(own) if s in base])
    gap, low = "", float("nan")
    if len(paired) > 1:
        half = float(stats.t.ppf(0.975, len(paired) - 1) * paired.std(ddof=1) / np.sqrt(len(paired)))
        low = paired.mean() - half
        gap = f"{paired.mean():+.1f} [{low:+.1f}, {paired.mean() + half:+.1f}]"
    asked, met = [], len(paired) > 1
    if bar.points is None:
        asked.append("stated")
        return gap, "stated", ""
    if bar.least is not None:
        asked.append(f"at least {bar.least:.0%}")
        met = met and float(np.mean(list(own.values()))) >= bar.least
    asked.append(f"at least {bar.points:+.0f} points" if bar.points else "above, interval clear of zero")
    met = met and (paired.mean() >= bar.points if bar.points else low > 0)
    return gap, ", ".join(asked), "yes" if met else "no"


def write_tables() -> None:
    lines = ["# Proof tables", "", "Generated by `python tests/proofs/run.py --tables` from the CSV files beside it.", ""]
    for table in BARS:
        rows = read(table)
        if rows:
            found = sorted({f"torch {row.torch}, {row.machine}, {row.budget:.0f} s of training a run" for row in rows})
            lines += [f"## {table}", "", "; ".join(found) + ". Scores in percent on test images.", ""]
            lines += [*table_lines(table, rows), ""]
    (HERE / "README.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=list(BARS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.table:
        if given.data is None:
            parser.error("--data names the folder with the images")
        untrained = {"selfsup": ["resnet_small", "vit_tiny"], "fewshot": ["conv4"], "semisup": []}[given.table]
        names = given.methods or [*(f"{UNTRAINED} {e}" for e in untrained), *BARS[given.table]]
        done = {(row.method, row.seed) for row in read(given.table) if row.budget == given.seconds}
        for seed in range(given.seeds):
            for name in names:
                if (name, seed) in done:
                    continue
                started = time.perf_counter()
                row = run(given.table, name, seed, given.data, given.seconds)
                append(row)
                figures = ", ".join(f"{k} {v:.1%}" for k, v in row.scores.items())
                print(f"{name} seed {seed}: {figures} ({time.perf_counter() - started:.0f} s in all)", flush=True)
    write_tables()


if __name__ == "__main__":
    main()
