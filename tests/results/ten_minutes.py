"""What labelwise makes of 250 labels in ten minutes: the default study on CIFAR-10 with a pretrained encoder, draw by draw.

    python tests/results/ten_minutes.py --data DIR [--draws 5]
    python tests/results/ten_minutes.py --page          # rebuilds the page from the rows alone

DIR holds CIFAR-10 as class folders in zips, cifar10-jpeg-20k-train.zip and cifar10-jpeg-5k-test.zip. Every draw is a whole
study by the command line, from its start to its end, with nothing known from an earlier one; it runs alone. Rows are appended
to ``tests/results/ten_minutes.jsonl`` as they end; those that are there are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from orchestrator.engine.finalists import finalists
from orchestrator.engine.history import History
from orchestrator.engine.journal import read_journal
from orchestrator.folder import RunFolder
from orchestrator.prepare import versions

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "ten_minutes.jsonl", HERE / "ten_minutes.md"
LABELS, MINUTES, ENCODER, BAR = 250, 10, "lite0", 70.0


@dataclass(frozen=True)
class Row:
    """One draw.

    Attributes:
        draw: seed of the study.
        winner: method of the winner.
        test, tests: accuracy of the winner's model in percent, of so many images.
        predicted: value, low and high, in percent, said before the test was opened.
        search: the best score of each method in the search, in percent.
        seconds: of the whole command.
        cores, versions: of what computed.
    """

    draw: int
    winner: str
    test: float
    tests: int
    predicted: tuple[float, float, float]
    search: dict[str, float]
    seconds: float
    cores: int
    versions: dict[str, str]


def read_rows() -> list[Row]:
    """Complete lines alone."""
    lines = ROWS.read_text(encoding="utf-8").split("\n")[:-1] if ROWS.exists() else []
    return [Row(**{**each, "predicted": tuple(each["predicted"])}) for each in map(json.loads, lines)]


def measure(draw: int, folder: Path) -> Row:
    """Runs the command and reads its run folder."""
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study.yaml"
        study.write_text(
            f"data: {folder.resolve() / 'cifar10-jpeg-20k-train.zip'}\ntest: {folder.resolve() / 'cifar10-jpeg-5k-test.zip'}\n"
            f"labels: {LABELS}\nencoder: {ENCODER}\nbudget: {{minutes: {MINUTES}}}\nseed: {draw}\n",
            encoding="utf-8",
        )
        out, began = Path(place) / "run", time.monotonic()
        environment = {**os.environ, "LABELWISE_CACHE": ""}
        subprocess.run([sys.executable, "-m", "orchestrator", "run", study, "--out", out], env=environment, check=True)
        seconds = time.monotonic() - began
        history = History(read_journal(RunFolder.open(out).storage))
    best, said = finalists(history)[0], history.predicted
    assert said is not None
    search: dict[str, float] = {}
    for trial in history.search():
        if trial.status == "finished" and trial.value is not None:
            search[trial.spec.method] = max(search.get(trial.spec.method, 0.0), round(100 * trial.value, 1))
    predicted = tuple(round(100 * each, 1) for each in (said.value, said.low, said.high))
    first = best.tests[0]
    return Row(
        draw, best.trial.spec.method, round(100 * first.value, 2), first.n, predicted, search, round(seconds, 1),
        os.cpu_count() or 1, versions(),
    )  # type: ignore[arg-type]  # fmt: skip


def page(rows: Sequence[Row]) -> str:
    """The generated page."""
    lines = [
        "# 250 labels and ten minutes",
        "",
        "Written by `python tests/results/ten_minutes.py --page` from its rows; its first lines say what is measured.",
        "",
    ]
    if rows:
        tests = np.array([row.test for row in rows])
        sd = f", sd {tests.std(ddof=1):.1f}" if len(tests) > 1 else ""
        told = ", ".join(f"{name} {version}" for name, version in rows[-1].versions.items())
        inside = sum(row.predicted[1] <= row.test <= row.predicted[2] for row in rows)
        lines += [
            f"Test accuracy {tests.mean():.1f}%{sd}, n {len(tests)} draws, {rows[0].tests:,} images (bar {BAR:.0f}%); the whole"
            f" command took {np.mean([row.seconds for row in rows]):.0f} s on {rows[0].cores} cores; the prediction covers"
            f" {inside} of {len(rows)}. {told}.",
            "",
            "| draw | winner | test | predicted | seconds | best of each method in the search |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=lambda row: row.draw):
            value, low, high = row.predicted
            ranked = sorted(row.search.items(), key=lambda item: -item[1])
            search = ", ".join(f"{name} {score:.1f}" for name, score in ranked)
            said = f"{value:.1f} [{low:.1f}, {high:.1f}]"
            lines.append(f"| {row.draw} | {row.winner} | {row.test:.1f} | {said} | {row.seconds:.0f} | {search} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    for draw in [] if given.page else range(given.draws):
        if draw not in {row.draw for row in read_rows()}:
            line = json.dumps(asdict(measure(draw, given.data)))
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    PAGE.write_text(page(read_rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
