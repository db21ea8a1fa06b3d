"""Which allocation, which sampler, which strategy? Whole searches on synthetic scores, by ``orchestrator.testing.simulate``.

    python tests/results/allocation.py [--seeds 30] [--only allocation strategy]
    python tests/results/allocation.py --page      # rebuilds the page from the rows alone

Every search appends one line to ``tests/results/allocation.jsonl``; those that are there are skipped, so that the command goes
on where it was stopped.

**Synthetic scores.** Ten methods; at their best they reach .50 to .77 in steps of .03. A configuration's score is that, less .1
for every decade that its learning rate lies from the method's own optimum, which is drawn from the 3.5 decades of its range;
noise of sd .01 on every training; four knobs do nothing. The defaults lie in the middle of every range.

**Regret within a method** is its score at the optimum less that of its configuration that scored best, both without noise, in
points: the mean over all ten methods, and over the three best. **Regret of the choice** is .77 less the noiseless score of the
configuration that scored best of all.

For strategies, trainings have nine epochs; on the way there a configuration is behind its last score by a method's own gap
(0 to 20 points, drawn) times the share of log-epochs that are left, so that early scores mislead between methods; budgets are
epochs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from methods.batch import seed_of
from methods.contracts import Method
from methods.parts.files import write_text
from methods.training.clock import Fidelity
from orchestrator import Study
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration
from orchestrator.testing import simulate
from search_spaces.domains import Float, knob

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "allocation.jsonl", HERE / "allocation.md"

MANY, STEP, TOP = 10, 0.03, 0.77
DECADES = (-4.0, -0.5)
NOISE, GAP, EPOCHS = 0.01, 0.2, 9
BEST = 3
"""How many of the best methods the second figure is over."""


@dataclass(frozen=True)
class Config:
    """The knobs of every synthetic method."""

    lr: float = knob(10 ** (sum(DECADES) / 2), Float(10 ** DECADES[0], 10 ** DECADES[1], log=True))
    one: float = knob(0.5, Float(0.0, 1.0))
    two: float = knob(0.5, Float(0.0, 1.0))
    three: float = knob(0.5, Float(0.0, 1.0))
    four: float = knob(0.5, Float(0.0, 1.0))


def _never(config: Config, context: object) -> Any:
    raise AssertionError("nothing is trained here")


METHODS = tuple(Method(f"m{i}", "baseline", "none", "synthetic", Config, _never, uses_labels=True) for i in range(MANY))


@dataclass(frozen=True)
class World:
    """One draw of the methods' levels, optima (log10 of lr) and gaps, by name."""

    seed: int
    level: dict[str, float]
    optimum: dict[str, float]
    gap: dict[str, float]

    @classmethod
    def drawn(cls, seed: int) -> World:
        random = np.random.default_rng(seed_of("world", seed) % 2**32)
        names = [method.name for method in METHODS]
        levels = random.permutation(TOP - STEP * np.arange(MANY))
        optima, gaps = random.uniform(*DECADES, MANY), random.uniform(0, GAP, MANY)
        return cls(seed, *(dict(zip(names, each.tolist(), strict=True)) for each in (levels, optima, gaps)))

    def clean(self, method: str, lr: float) -> float:
        """The score at the end of a training, without noise."""
        return self.level[method] - 0.1 * abs(math.log10(lr) - self.optimum[method])

    def score(self, configuration: Configuration, at: Fidelity, seed: int) -> tuple[float, float]:
        """Of a training with this seed, and the seconds that it takes to get there."""
        noise = NOISE * np.random.default_rng(seed_of("noise", self.seed, seed, at.amount) % 2**32).normal()
        behind = self.gap[configuration.method] * math.log(EPOCHS / at.amount) / math.log(EPOCHS)
        return self.clean(configuration.method, float(configuration.values["lr"])) - behind + noise, at.amount


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        part: ``allocation`` (budgets of trials, each trained to the end) or ``strategy`` (budgets of epochs).
        strategy, allocation, sampler: as a study file has them.
        budget: trials, or epochs.
        seed: of the world and of the search.
        trials: of each method, the worst method first.
        regret: of each method's configuration that scored best at the top, in points; None where none came there.
        choice: regret of the choice, in points.
        seconds: of the driver, in all.
    """

    part: str
    strategy: Any
    allocation: Any
    sampler: Any
    budget: int
    seed: int
    trials: tuple[int, ...]
    regret: tuple[float | None, ...]
    choice: float
    seconds: float

    @property
    def key(self) -> str:
        return json.dumps([self.part, self.strategy, self.allocation, self.sampler, self.budget, self.seed])


TPE: Any = "tpe"
TEN: Any = {"tpe": {"startup": 10}}
APART: Any = {"tpe": {"together": False}}
ALLOCATIONS: tuple[tuple[Any, Any], ...] = (
    ("tpe", TPE),
    ("round_robin", TPE),
    ("halving", TPE),
    ("max_ucb", TPE),
    ("round_robin", "random"),
    ("round_robin", "quasi_random"),
    ("round_robin", TEN),
    ("round_robin", APART),
    ({"halving": {"trials": 4}}, TPE),
    ({"halving": {"trials": 12}}, TPE),
    ("halving", "random"),
    ({"max_ucb": {"floor": 1}}, TPE),
    ("max_ucb", "random"),
)
"""Allocations and samplers held against each other; the first is the search of before there were two levels."""

STRATEGIES: tuple[tuple[Any, Any], ...] = (
    ("asha_stopping", "tpe"),
    *((name, "halving") for name in ("asha", "asha_stopping", "hyperband", "one_epoch_then_top_k", "none")),
    ("asha", "round_robin"),
)
"""Strategies and allocations held against each other."""

TRIALS = (30, 60, 200)
BUDGETS = {"allocation": TRIALS, "strategy": tuple(EPOCHS * trials for trials in TRIALS[:2])}


def cases(part: str) -> Iterator[tuple[Any, Any, Any]]:
    """Strategy, allocation and sampler of each case of a part."""
    if part == "allocation":
        yield from (("none", allocation, sampler) for allocation, sampler in ALLOCATIONS)
    else:
        yield from ((strategy, allocation, TPE) for strategy, allocation in STRATEGIES)


def search(part: str, strategy: Any, allocation: Any, sampler: Any, budget: int, seed: int) -> Row:
    """Plays one search."""
    world = World.drawn(seed)
    spent: dict[str, Any] = {"trials": budget} if part == "allocation" else {"budget": {"epochs": budget}}
    study = Study(
        data="digits", methods=METHODS, epochs=EPOCHS, strategy=strategy, allocation=allocation, sampler=sampler, seed=seed,
        selection={"top": 1, "folds": 2, "refit": False}, **spent,
    )  # fmt: skip
    began = time.perf_counter()
    history = History(simulate(study, world.score))
    seconds = time.perf_counter() - began
    names = sorted(world.level, key=lambda name: world.level[name])
    finished = [t for t in history.search() if t.status == "finished"]

    def lost(method: str) -> float | None:
        own = [t for t in finished if t.spec.method == method]
        if not own:
            return None
        best = max(own, key=lambda t: t.value or 0.0).spec
        return 100 * (world.level[method] - world.clean(method, float(best.values["lr"])))

    chosen = max(finished, key=lambda t: t.value or 0.0).spec
    return Row(
        part, strategy, allocation, sampler, budget, seed,
        trials=tuple(sum(t.spec.method == name for t in history.search()) for name in names),
        regret=tuple(lost(name) for name in names),
        choice=100 * (TOP - world.clean(chosen.method, float(chosen.values["lr"]))),
        seconds=round(seconds, 3),
    )  # fmt: skip


def read_rows() -> list[Row]:
    """Complete lines alone: a line torn by a kill is left out."""
    if not ROWS.exists():
        return []
    raw = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").split("\n")[:-1]]
    return [Row(**{**each, "trials": tuple(each["trials"]), "regret": tuple(each["regret"])}) for each in raw]


def append(row: Row) -> None:
    whole = ROWS.read_text(encoding="utf-8").rpartition("\n")[0] if ROWS.exists() else ""
    write_text(ROWS, (whole + "\n" if whole else "") + json.dumps(asdict(row)) + "\n")


def _told(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.2f} ± {half:.2f}"


def _word(choice: Any) -> str:
    if isinstance(choice, str):
        return choice
    ((name, settings),) = choice.items()
    return f"{name} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def figures(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    """Of each search the mean regret over all methods, over the best three, and the regret of the choice."""
    every = [float(np.mean([each for each in row.regret if each is not None])) for row in rows]
    best = [float(np.mean([each for each in row.regret[-BEST:] if each is not None])) for row in rows]
    return every, best, [row.choice for row in rows]


def page(rows: Sequence[Row]) -> str:
    """The generated page."""
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "# Which method next, with which knobs, and who goes on"
    yield ""
    yield f"Written by `python tests/results/allocation.py --page` from {len(rows)} simulated searches; its first lines say"
    yield "what is measured. Points of regret, mean and 95% interval over seeds."
    for part in ("allocation", "strategy"):
        yield from _tables(part, [row for row in rows if row.part == part])
    yield from _bars([row for row in rows if row.part == "allocation"])


def _tables(part: str, rows: Sequence[Row]) -> Iterator[str]:
    unit = "trials" if part == "allocation" else "epochs"
    for budget in BUDGETS[part]:
        yield ""
        yield f"## {'Allocation and sampler' if part == 'allocation' else 'Strategy'}: {budget} {unit}"
        yield ""
        yield (
            "| strategy | allocation | sampler | n | all ten | three best | choice | trials, worst method to best |"
            " ms a trial |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for case in cases(part):
            of = [r for r in rows if r.budget == budget and (r.strategy, r.allocation, r.sampler) == case]
            if not of:
                continue
            told = " | ".join(_told(each) for each in figures(of))
            shares = " ".join(f"{each:.0f}" for each in np.mean([r.trials for r in of], axis=0))
            speed = np.mean([1000 * r.seconds / sum(r.trials) for r in of])
            yield f"| {' | '.join(map(_word, case))} | {len(of)} | {told} | {shares} | {speed:.1f} |"


def _bars(rows: Sequence[Row]) -> Iterator[str]:
    """The issue's bars, for the default allocation and sampler."""
    yield ""
    yield "## Bars"
    yield ""
    yield f"For allocation {_word(DEFAULT[0])} with sampler {_word(DEFAULT[1])}."
    yield ""
    yield "| bar | measured | against | met |"
    yield "|---|---|---|---|"

    def mean(case: tuple[Any, Any], budget: int) -> tuple[float, float]:
        of = [r for r in rows if r.budget == budget and (r.allocation, r.sampler) == case]
        every, best, _ = figures(of)
        return float(np.mean(every)), float(np.mean(best))

    checks = []
    for budget in TRIALS:
        if not all(any(r.budget == budget and (r.allocation, r.sampler) == case for r in rows) for case in (DEFAULT, *RIVALS)):
            continue
        own, joint, turns = (mean(case, budget) for case in (DEFAULT, *RIVALS))
        if budget == max(TRIALS):
            checks.append((f"{budget} trials: three best at most half of joint TPE's", own[1], joint[1] / 2))
            checks.append((f"{budget} trials: all ten not above joint TPE's", own[0], joint[0]))
        else:
            checks.append((f"{budget} trials: all ten not above round robin's", own[0], turns[0]))
            checks.append((f"{budget} trials: three best not above round robin's", own[1], turns[1]))
    for words, value, limit in checks:
        yield f"| {words} | {value:.2f} | {limit:.2f} | {'yes' if value <= limit else 'no'} |"


DEFAULT: tuple[Any, Any] = ("halving", TPE)
"""What the bars are held for. A study that names none still gets the first of ``ALLOCATIONS``."""

RIVALS: tuple[tuple[Any, Any], ...] = (("tpe", TPE), ("round_robin", TPE))
"""What the bars compare it with: joint TPE, and round robin."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if not given.page:
        done = {row.key for row in read_rows()}
        for seed in range(given.seeds):
            for part in given.only:
                for budget in BUDGETS[part]:
                    for case in cases(part):
                        if json.dumps([part, *case, budget, seed]) not in done:
                            append(search(part, *case, budget, seed))
            print(f"seed {seed} done", flush=True)
    write_text(PAGE, page(read_rows()))


if __name__ == "__main__":
    main()
