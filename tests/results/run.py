"""The proof tables: every method on real images, at a fixed number of training seconds, against its baseline.

    python tests/results/run.py selfsup --data DIR [--seconds 120] [--seeds 3] [--rows simclr moco] [--threads 2]
    python tests/results/run.py semisup --data DIR [--labels 250]       # CIFAR-10; 40, 250, 1000 and 4000 are usual
    python tests/results/run.py digits [--labels 40]
    python tests/results/run.py clip
    python tests/results/run.py switches --data DIR                     # simclr's switches, and mae's mask ratio
    python tests/results/run.py --tables          # rebuilds tables, figure and the README's guide from the rows alone

Every run appends one row to ``tests/results/TABLE.csv`` as it ends; rows that are there already are skipped, so the command
goes on where it was stopped, and several processes (``--threads 1``) may fill one table together. A pilot is ``--seeds 1`` at
a few values of ``--seconds``; tables of other seconds or labels stand apart. Knobs are the methods' defaults unless the row
says otherwise. DIR holds CIFAR-10 as JPEG (cifar10-jpeg-20k-train.zip, cifar10-jpeg-5k-test.zip) and Omniglot's small
background sets (omniglot-background-small1.zip, -small2.zip).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rows import Key, Row, fill, read
from tables import ACROSS, HERE, LOOKS, NEW_LOOKS, SEARCH, TABLES, UNTRAINED, Entry, key_of, write_tables

from methods import CATALOGUE, EncoderSpec, Training, TrainSettings
from methods.data.budget import split, train_data
from methods.data.episodic import split_few_shot
from methods.data.records import LabelledSubset, Source, Split, TrainData
from methods.data.sources import load
from methods.data.views import select
from methods.parts.encoders import build_encoder, parameter_count
from methods.parts.framed import FramedEncoder
from methods.parts.framing import paper_of
from methods.protocols import FewShot, Linear, Predict, ZeroShot
from methods.protocols.contract import Trained
from search_spaces.domains import UserError, build


@cache
def cifar(data: Path, labels: int, seed: int) -> Split:
    train = load(str(data / "cifar10-jpeg-20k-train.zip"))
    return split(train, labels=labels, test=load(str(data / "cifar10-jpeg-5k-test.zip"), size=(32, 32), channels=3), seed=seed)


@cache
def digits(labels: int, seed: int) -> Split:
    """The test images are the same for every seed, so that the draws differ by their labels alone."""
    once = split(load("digits"), seed=0)
    assert once.test is not None
    return split(Source(once.labelled.data, once.test.data), labels=labels, seed=seed)


@cache
def omniglot(data: Path) -> Split:
    train = load(str(data / "omniglot-background-small1.zip"), size=28)
    test = load(str(data / "omniglot-background-small2.zip"), size=28)
    groups = [name for name in test.train.groups if name not in train.train.groups]
    return split_few_shot(train, test=test, test_groups=groups, seed=0)


@cache
def glyph_looks() -> Split:
    """Glyphs with captions to train on. Asked is which of all looks (weight, slant, size and place together) an image has,
    of images whose look no training image has, though each part of it stands in many."""
    data = load("glyphs").train
    parts = [next(c for c in data.targets if c.name == name) for name in ("weight", "slant", "size", "position")]
    looks = list(itertools.product(*(column.classes for column in parts)))
    assert len(looks) == LOOKS
    look = np.ravel_multi_index([column.label for column in parts], [len(column.classes) for column in parts])
    new = np.isin(look, np.random.default_rng(0).permutation(LOOKS)[: LOOKS // 5])
    hidden = np.full(int((~new).sum()), -1, dtype=np.int64)
    shown = dataclasses.replace(select(data, np.flatnonzero(~new)), label=hidden, caption_labels=False)
    asked = dataclasses.replace(data, label=look, classes=tuple(" ".join(words) for words in looks))
    nothing = LabelledSubset(asked, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return Split(train_data(shown, hidden), nothing, nothing, LabelledSubset(asked, np.flatnonzero(new), look[new]), False)


@cache
def cifar_classes(data: Path) -> Split:
    """Five classes to train on and to validate, the five others to test."""
    return split_few_shot(load(str(data / "cifar10-jpeg-20k-train.zip")), by="class", test_share=0.5, seed=0)


def untrained(data: TrainData, spec: EncoderSpec, seed: int, framed: bool = False) -> Trained:
    """A fresh encoder with its seeded weights."""
    torch.manual_seed(seed)
    encoder = build_encoder(spec, data.images.shape, data.mean, data.std)
    return Trained(FramedEncoder(encoder, paper_of(data.mean)) if framed else encoder)


def _probes(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    assert parts.test is not None
    few = _first_per_class(parts.budget(), 25)
    return {
        "probe 10,000": Linear().score(model, parts.budget(), parts.test, seed).value,
        "probe 250": Linear().score(model, few, parts.test, seed).value,
    }


def _first_per_class(labelled: LabelledSubset, each: int) -> LabelledSubset:
    rows = np.concatenate([np.flatnonzero(labelled.label == k)[:each] for k in np.unique(labelled.label)])
    return LabelledSubset(labelled.data, labelled.index[rows], labelled.label[rows])


def _test(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    return {"test": Predict().score(model, parts.budget(), parts.test, seed).value}


def _validation(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    protocol = FewShot(5, 1, 15, 600) if parts.new_classes else Predict()
    return {"validation": protocol.score(model, parts.labelled, parts.validation, seed).value}


def _episodes(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    protocols = {
        ACROSS: FewShot(5, 1, 15, 600),
        "5-way 5-shot across": FewShot(5, 5, 15, 600),
        "20-way 1-shot across": FewShot(20, 1, 10, 600),
        "20-way 1-shot within": FewShot(20, 1, 10, 600, within_group=True),
    }
    return {name: p.score(model, parts.labelled, parts.test, seed).value for name, p in protocols.items()}


def _class_episodes(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    protocols = {f"5-way {shots}-shot": FewShot(5, shots, 15, 600) for shots in (1, 5)}
    return {name: p.score(model, parts.labelled, parts.test, seed).value for name, p in protocols.items()}


def _looks(model: Trained, parts: Split, seed: int) -> dict[str, float]:
    return {NEW_LOOKS: ZeroShot().score(model, parts.labelled, parts.test, seed).value}


SCORING: dict[str, Callable[[Trained, Split, int], dict[str, float]]] = {
    "selfsup": _probes,
    "switches": _probes,
    "clip": _looks,
    "fewshot": _episodes,
    "fewshot_cifar": _class_episodes,
}
"""How a table's rows are scored; those of the others by their own classifier on the test images."""


@dataclass(frozen=True)
class Bench:
    """Where rows are computed: the folder with the images, and the one with the tables."""

    data: Path
    out: Path

    def parts(self, key: Key, search: bool) -> Split:
        """The images of a row. Of a label budget a search keeps the validation labels from the methods, and a row shows all."""
        if key.table == "fewshot":
            return omniglot(self.data)
        if key.table == "fewshot_cifar":
            return cifar_classes(self.data)
        if key.table == "clip":
            return glyph_looks()
        if key.table in ("selfsup", "switches"):
            return cifar(self.data, 10_000, 0)
        parts = digits(key.labels, key.seed) if key.table == "digits" else cifar(self.data, key.labels, key.seed)
        if search:
            return dataclasses.replace(parts, test=None)
        label = parts.train.label.copy()
        label[parts.validation.index] = parts.validation.label
        return dataclasses.replace(parts, train=dataclasses.replace(parts.train, label=label))

    def train(self, key: Key) -> Row:
        """One row: trains, and scores on the test images, or on validation labels where the row belongs to a search."""
        started = time.perf_counter()
        table = key.table.removesuffix(SEARCH)
        search = table != key.table
        entry = TABLES[table].rows[key.method]
        own = dataclasses.replace(key, table=table)
        parts, spec = self.parts(own, search), EncoderSpec(entry.encoder)
        if entry.method == UNTRAINED:
            model, spent, images = untrained(parts.train, spec, key.seed, **json.loads(key.knobs)), 0.0, 0
        else:
            config = build(CATALOGUE[entry.method].config, json.loads(key.knobs))
            settings = TrainSettings(None, spec, key.seed, seconds=key.budget)
            training = Training(CATALOGUE[entry.method], config, parts.train, settings)
            spent, images = 0.0, 0
            while training.done.amount < key.budget:
                report = training.train()
                if not report.finite:
                    raise UserError(f"{key.method} diverged: its loss was not a number")
                spent, images = training.done.amount, images + report.images
            learner = training.learner
            model = Trained(learner.encoder(), learner.predictor(), learner, training.uses_labels)
        scoring = _validation if search else SCORING.get(table, _test)
        scores = scoring(model, parts, key.seed)
        figures = ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
        took = time.perf_counter() - started
        print(f"{key.table}: {key.method} seed {key.seed}: {figures} ({took:.0f} s in all)", flush=True)
        return Row(
            key, spec.name, parameter_count(model.encoder), round(spent, 3), images, torch.get_num_threads(), _versions(),
            f"{platform.machine()} with {os.cpu_count()} cores", scores,
        )  # fmt: skip

    def chosen(self, table: str, name: str, entry: Entry, labels: int, seconds: float) -> Mapping[str, object]:
        """The candidate of the entry's grid with the highest mean validation score; of equals the first.

        It is chosen once for a table, label budget and training time; the test images are not opened.
        """
        if not entry.grid:
            return {}
        candidates = [
            [
                dataclasses.replace(key_of(table, name, labels, seed, seconds, knobs), table=table + SEARCH)
                for seed in range(TABLES[table].draws)
            ]
            for knobs in entry.grid
        ]
        for wait in (False, True):  # first what no other process is at, then what others have not ended
            fill(self.out, [key for keys in candidates for key in keys], self.train, wait)
        score = {row.key: row.scores["validation"] for row in read(self.out, table + SEARCH)}
        # A candidate that failed, as printed, is out of the running.
        means = [float(np.mean([score.get(key, -np.inf) for key in keys])) for keys in candidates]
        return entry.grid[int(np.argmax(means))]


def _versions() -> str:
    names = ("torch", "numpy", "scikit-learn")
    return ", ".join([*(f"{name} {version(name)}" for name in names), f"python {platform.python_version()}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=list(TABLES))
    parser.add_argument("--data", type=Path, help="folder with the images; digits and clip need none")
    parser.add_argument("--labels", type=int, help="label budget of semisup and digits")
    parser.add_argument("--seconds", type=float, help="of training a run")
    parser.add_argument("--seeds", type=int, help="runs a row, each with its own draw of the labels; 1 for a pilot")
    parser.add_argument("--rows", nargs="*", help="only these rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    given = parser.parse_args(arguments)
    if given.table is None and not given.tables:
        parser.error(f"name a table, one of {', '.join(TABLES)}, or --tables")
    torch.set_num_threads(given.threads)
    if given.table and not given.tables:
        declared = TABLES[given.table]
        if given.data is None and given.table not in ("digits", "clip"):
            parser.error("--data names the folder with the images")
        if given.labels is not None and not declared.labels:
            parser.error("--labels is for semisup and digits")
        labels = declared.labels if given.labels is None else given.labels
        seconds = float(declared.seconds if given.seconds is None else given.seconds)
        unknown = sorted(set(given.rows or ()) - set(declared.rows))
        if unknown:
            parser.error(f"{unknown[0]} is no row of {given.table}, whose rows are {', '.join(declared.rows)}")
        bench = Bench(given.data or Path(), given.out)
        names = given.rows or list(declared.rows)
        knobs = {name: bench.chosen(given.table, name, declared.rows[name], labels, seconds) for name in names}
        keys = [
            key_of(given.table, name, labels, seed, seconds, knobs[name])
            for seed in range(declared.seeds if given.seeds is None else given.seeds)
            for name in names
        ]
        failed = fill(given.out, keys, bench.train)
        if failed:
            write_tables(given.out)
            sys.exit(f"{len(failed)} rows failed, first {failed[0].method} seed {failed[0].seed}: see above")
    write_tables(given.out)


if __name__ == "__main__":
    main()
