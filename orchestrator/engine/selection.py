"""After the search: the finalists, trained again with fresh seeds, and then on the whole label budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from methods.batch import seed_of
from orchestrator.budgets.contract import Ledger
from orchestrator.engine.history import History
from orchestrator.engine.records import Purpose, Trial, TrialSpec
from orchestrator.study import Selection


def trainings_after(selection: Selection, refits: frozenset[str], history: History) -> list[tuple[Trial, float]]:
    """What the selection would train if the search ended now: trials like these, and how many of each.

    While fewer than ``selection.top`` trials have finished, the longest one stands for those to come.
    """
    finished = [t for t in history.search() if t.status == "finished"]
    if not finished:
        return []
    chosen = ranked(finished)[: selection.top]
    chosen += [max(finished, key=lambda t: t.seconds_from_nothing)] * (selection.top - len(chosen))
    again, last = selection.repeats("retrain"), selection.repeats("refit")
    return [(t, again + last * (t.spec.method in refits)) for t in chosen]


def ranked(finished: Sequence[Trial]) -> list[Trial]:
    """Finished trials of the search, best first; of equals the faster, then the earlier."""
    scored = [t for t in finished if t.value is not None]
    return sorted(scored, key=lambda t: (-(t.value or 0.0), t.seconds, t.spec.trial))


@dataclass(frozen=True)
class Finals:
    """Which configurations are trained again, how often, and in which order: a fixed function of (seed, history).

    Attributes:
        selection: how many finalists, with how many seeds.
        refits: names of the methods that are also trained on the whole budget.
        seed: of the study.
        ledger: where a budget would not bear all trainings, later repeats are left out.
    """

    selection: Selection
    refits: frozenset[str]
    seed: int
    ledger: Ledger

    def select(self, history: History) -> list[int]:
        """The finalists' trial numbers, best first by the search's score."""
        finished = [t for t in history.search() if t.status == "finished"]
        return [t.spec.trial for t in ranked(finished)[: self.selection.top]]

    def next(self, history: History) -> TrialSpec | None:
        """The next finalist's training, or None where all have been started that the budgets bear."""
        for purpose, repeat, origin in self._wanted(history):
            key = f"{origin.spec.key}-{purpose}-{repeat}"
            if key in history.trials:
                continue
            if repeat > 0 and not self._affordable(origin, purpose, history):
                continue
            spec = origin.spec
            seed = seed_of(self.seed, "retrain", repeat)
            return TrialSpec(key, spec.trial, spec.method, spec.values, seed, purpose, spec.origin, repeat)
        return None

    def _wanted(self, history: History) -> Iterator[tuple[Purpose, int, Trial]]:
        """Fresh seeds of every finalist, round by round; then the whole budget, the best finalist first."""
        by_number = {t.spec.trial: t for t in history.search()}
        finalists = [by_number[number] for number in history.selected or []]
        for repeat in range(self.selection.repeats("retrain")):
            yield from (("retrain", repeat, origin) for origin in finalists)
        for repeat in range(self.selection.repeats("refit")):
            yield from (("refit", repeat, origin) for origin in finalists if origin.spec.method in self.refits)

    def _affordable(self, origin: Trial, purpose: Purpose, history: History) -> bool:
        """Whether the training fits beside those that must come: one refit of every finalist, and what is under way."""
        must: list[tuple[Trial, float]] = [(origin, 1.0)]
        if purpose == "retrain":
            started = {t.spec.trial for t in history.trials.values() if t.spec.purpose == "refit"}
            finalists = [t for t in history.search() if t.spec.trial in (history.selected or [])]
            must += [(t, 1.0) for t in finalists if t.spec.method in self.refits and t.spec.trial not in started]
        by_number = {t.spec.trial: t for t in history.search()}
        must += [(by_number[t.spec.trial], self._left_of(t, by_number[t.spec.trial])) for t in history.open()]
        return self.ledger.allows(history, must)

    @staticmethod
    def _left_of(trial: Trial, origin: Trial) -> float:
        """The share of a training that is still to come, by what its configuration took in the search."""
        return float(np.clip(1 - trial.seconds / max(origin.seconds_from_nothing, 1e-9), 0.0, 1.0))
