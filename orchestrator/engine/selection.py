"""After the search: the finalists are judged by folds, round by round, and the winner is trained on the whole budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from methods.batch import seed_of
from methods.protocols.contract import difference_of
from orchestrator.budgets.contract import Ledger
from orchestrator.engine.events import Selected
from orchestrator.engine.finalists import compare, finalists
from orchestrator.engine.history import History
from orchestrator.engine.records import Purpose, Trial, TrialSpec
from orchestrator.study import Selection

SHARE = 0.5
"""What selection and refit may cost by default, in terms of what the search did: a third of both together."""

MOST = 5
"""Finalists at the most, where their number follows the budget."""

BEHIND = 0.05
"""Chance, over all looks of a race together, that a finalist which is not behind the leader is dropped."""

THINNER = (0.5, 0.25)
"""Shares of a fold's training labels at which the winner's learning curve is read."""


@dataclass(frozen=True)
class Division:
    """How the task's labels may judge finalists.

    Attributes:
        counts: numbers of folds to choose from, ascending.
        nested: those of which the first fold is judged as the search's trials are, by models of the same labels.
    """

    counts: tuple[int, ...] = (1,)
    nested: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Plan:
    """How many finalists are judged, by how many rounds of how many folds."""

    top: int
    folds: int
    rounds: int


@dataclass(frozen=True)
class Start:
    """The next training of the selection: ``spec``, from nothing or from the checkpoint ``start``."""

    spec: TrialSpec
    start: str | None = None


def ranked(finished: Sequence[Trial]) -> list[Trial]:
    """Finished trials of the search, best first; of equals the earlier, so defaults go first and no course hangs on a clock."""
    scored = [t for t in finished if t.value is not None]
    return sorted(scored, key=lambda t: (-(t.value or 0.0), t.spec.trial))


def _size(trial: Trial) -> tuple[float, float]:
    """What orders trainings by their cost: seconds alone would differ from run to run."""
    return trial.effort, trial.seconds_from_nothing


def lineup(finished: Sequence[Trial], most: int, baseline: str | None = None) -> list[Trial]:
    """Who comes in, in this order: the best of each method, the better ones first, but the method ``baseline`` second at the
    latest, where it is not clearly behind; the best with each encoder that is not yet among them; then the next best, where
    these are few.

    One configuration a method first: scores of a search are so noisy that the best few are often one method's, and methods
    (and encoders) differ by more than the configurations of one that score alike.
    """
    order = ranked(finished)
    methods: dict[str, Trial] = {}
    for trial in order:
        methods.setdefault(trial.spec.method, trial)
    leader = next(iter(methods), None)
    if leader is not None and baseline in methods and not _clearly_behind(methods[baseline], methods[leader]):
        methods = {leader: methods[leader], baseline: methods[baseline]} | methods
    encoders = {trial.spec.encoder: trial for trial in methods.values()}
    for trial in order:
        encoders.setdefault(trial.spec.encoder, trial)
    first = {trial.spec.key: trial for trial in (*methods.values(), *encoders.values())}
    return [*first.values(), *(trial for trial in order if trial.spec.key not in first)][:most]


def _clearly_behind(trial: Trial, leader: Trial) -> bool:
    """Whether the search itself tells, on the images that judged both."""
    own, best = (t.rungs[-1].units if t.rungs else None for t in (trial, leader))
    if own is None or best is None or own.shape != best.shape:
        return False
    yes_or_no = own.dtype == best.dtype == bool
    return difference_of(best.astype(np.float64) - own, yes_or_no, 1 - 2 * BEHIND).low > 0


def contenders(finished: Sequence[Trial], top: int, baseline: str | None = None) -> list[Trial]:
    """The finalists among finished trials, best first."""
    return ranked(lineup(finished, top, baseline))


@dataclass(frozen=True)
class Finals:
    """Which configurations are judged again, how often, and in which order: a fixed function of (seed, history).

    Attributes:
        selection: how many finalists, folds and seeds; ``auto`` follows what the search has cost.
        division: how the labels may judge.
        refits: names of the methods whose winner is trained on the whole budget.
        label_free: names of the methods whose training reads no labels, so that one training serves all folds.
        in_one_go: names of the methods that are fitted in one go, for each fold anew: that costs less than a checkpoint.
        seed: of the study.
    """

    selection: Selection
    division: Division
    refits: frozenset[str]
    label_free: frozenset[str]
    seed: int
    in_one_go: frozenset[str] = frozenset()

    @property
    def most(self) -> int:
        """Finalists at the most."""
        return self.selection.top if isinstance(self.selection.top, int) else MOST

    def select(self, history: History) -> Selected:
        """The finalists, best first by the search's score, and how they are judged."""
        finished = [t for t in history.search() if t.status == "finished"]
        baseline = self.selection.baseline
        plan = self._plan(lineup(finished, self.most, baseline), history)
        chosen = contenders(finished, plan.top, baseline)
        own = next((t.spec.trial for t in chosen if t.spec.method == baseline), None)
        return Selected([t.spec.trial for t in chosen], plan.folds, plan.rounds, plan.folds in self.division.nested, own)

    def trainings_after(self, history: History) -> list[tuple[Trial, float]]:
        """What the selection would train if the search ended now: trials like these, and how many of each.

        While too few trials have finished, the longest one stands for those to come.
        """
        # Asked again and again: of all that finished those few who may come in.
        line = lineup(history.totals.leaders(self.most), self.most, self.selection.baseline)
        return self._trainings(line, self._plan(line, history)) if line else []

    def _plan(self, line: Sequence[Trial], history: History) -> Plan:
        """The largest plan that costs at most ``SHARE`` of what the search has; the smallest where none does.

        Args:
            line: who comes in, in this order.
        """
        plans = self._plans()
        if not line:
            return plans[0]
        bears = SHARE * history.search_effort()
        fits = (plan for plan in reversed(plans) if sum(t.effort * n for t, n in self._trainings(line, plan)) <= bears)
        return next(fits, plans[0])

    def _plans(self) -> list[Plan]:
        """Plans to choose from, each larger than the one before."""
        given, top = self.selection.folds, self.selection.top
        counts = (given,) if isinstance(given, int) else self.division.counts
        plans = []
        for tops in [top] if isinstance(top, int) else range(2, MOST + 1):
            for folds in counts:
                # Every label judges once where that can be paid for; where folds are many, some of them judge.
                rounds = [folds] if isinstance(given, int) or folds < 3 else sorted({2, min(3, folds), folds})
                plans += [Plan(tops, folds, each) for each in rounds]
        return sorted(plans, key=lambda plan: (plan.top * (plan.rounds - (plan.folds in self.division.nested)), plan.top))

    def _trainings(self, line: Sequence[Trial], plan: Plan) -> list[tuple[Trial, float]]:
        """What the plan trains, of those in ``line``; the longest of them stands for those to come."""
        chosen = list(line[: plan.top])
        chosen += [max(line, key=_size)] * (plan.top - len(chosen))
        found: list[tuple[Trial, float]] = []
        for trial in chosen:
            if self._learns(trial):
                fresh = plan.rounds * self.selection.seeds - self._reuses(trial, plan.folds)
            else:
                fresh = self.selection.seeds - (trial.checkpoint is not None)
            found.append((trial, float(fresh)))
        # Whoever wins, the refit costs no more than the longest one's.
        longest = max(chosen, key=lambda t: (t.spec.method in self.refits, _size(t)))
        return [*found, (longest, float(self.selection.repeats("refit")))] if longest.spec.method in self.refits else found

    def _learns(self, trial: Trial) -> bool:
        """Whether each fold needs a training of its own."""
        return trial.spec.method not in self.label_free or self.division.counts == (1,)

    def _reuses(self, trial: Trial, folds: int) -> bool:
        """Whether the search's own model serves as the first fold's."""
        kept = trial.checkpoint is not None and trial.spec.method not in self.in_one_go
        return kept and folds in self.division.nested

    def next(self, history: History, ledger: Ledger) -> Start | None:
        """The next training, or None where all have been started that the budgets bear, or a round must end first."""
        finals = history.finals
        assert finals is not None
        if history.chosen is not None:
            # The test may have been opened: nothing more is chosen.
            return None
        by_number = {t.spec.trial: t for t in history.search()}
        racing = [by_number[number] for number in finals.trials]
        rounds = [(repeat, fold) for repeat in range(self.selection.seeds) for fold in range(finals.rounds)]
        for looks, (repeat, fold) in enumerate(rounds):
            if looks:
                racing = self._still_racing(racing, history, rounds[:looks], len(rounds) - 1)
            keys = [f"{t.spec.key}-{fold}of{finals.folds}-{repeat}" for t in racing]
            begun = any(key in history.trials for key in keys)
            # All of a round or nothing of it: finalists compare on the same folds.
            if looks and not begun and not self._affordable(racing, "fold", history, ledger):
                break
            for origin, key in zip(racing, keys, strict=True):
                if key not in history.trials:
                    return self._of_fold(origin, key, repeat, fold, finals, history)
            if any(key in history.trials and history.trials[key].status == "running" for key in keys):
                return None
        winner = next(iter(finalists(history)), None)
        return None if winner is None else self._of_winner(winner.trial, history, ledger)

    @staticmethod
    def _still_racing(racing: list[Trial], history: History, rounds: Sequence[tuple[int, int]], looks: int) -> list[Trial]:
        """Those that are not clearly behind the leader, by ``rounds`` (repeat, fold) alone."""
        by_trial = {f.trial.spec.trial: f.after(rounds) for f in finalists(history)}
        if not racing:
            return racing
        # In the order of the racing, so that later rounds do not change whom an earlier look took for the leader of equals.
        board = [by_trial[trial.spec.trial] for trial in racing]
        board = [f for f in board if len(f.judged) == max(len(other.judged) for other in board)]
        if not board[0].judged:
            return racing
        leader = max(board, key=lambda f: f.val)
        level = 1 - 2 * BEHIND / looks
        return [f.trial for f in board if f is leader or not compare(leader, f, level).low > 0]

    def _of_fold(self, origin: Trial, key: str, repeat: int, fold: int, finals: Selected, history: History) -> Start:
        """One fold's training: from nothing, or judged as it stands where another training serves it."""
        spec, label_free = origin.spec, not self._learns(origin)
        first = history.trials.get(f"{spec.key}-0of{finals.folds}-{repeat}")
        serves: Trial | None = None
        if repeat == 0 and (label_free or fold == 0) and (label_free or self._reuses(origin, finals.folds)):
            serves = origin if origin.checkpoint is not None else None
        if serves is None and label_free and fold > 0:
            # Label-free training is done once for all folds: by the search, else by the first fold.
            serves = first if first is not None and first.status == "finished" else None
        seed = seed_of(self.seed, "fold", repeat, 0 if label_free else fold) if serves is None else serves.spec.seed
        made = TrialSpec(
            key, spec.trial, spec.method, spec.values, seed, "fold", spec.origin, repeat,
            parent=None if serves is None else serves.spec.key, fold=fold, folds=finals.folds, encoder=spec.encoder,
        )  # fmt: skip
        return Start(made, None if serves is None else serves.checkpoint)

    def _of_winner(self, origin: Trial, history: History, ledger: Ledger) -> Start | None:
        """The winner's learning curve, where it can be paid for, and its refit."""
        finals, spec = history.finals, origin.spec
        assert finals is not None
        # On a fold that did not choose it: where it was lucky, fewer labels would seem to cost more than they do.
        of = 1 if finals.rounds > 1 else 0
        for purpose, repeat, share in self._last(origin, finals):
            key = f"{spec.key}-{purpose}-{repeat}" if purpose == "refit" else f"{spec.key}-{of}of{finals.folds}-curve{repeat}"
            if key in history.trials:
                continue
            if purpose == "curve" and not self._curve_pays(origin, history, ledger):
                continue
            if purpose == "refit" and repeat and not self._affordable([origin], purpose, history, ledger):
                continue
            shared = purpose == "curve" and not self._learns(origin) and origin.checkpoint is not None
            seed = spec.seed if shared else seed_of(self.seed, "refit", repeat)
            fold, folds = (of, finals.folds) if purpose == "curve" else (0, 1)
            made = TrialSpec(
                key, spec.trial, spec.method, spec.values, seed, purpose, spec.origin, repeat,
                parent=spec.key if shared else None, fold=fold, folds=folds, share=share, encoder=spec.encoder,
            )  # fmt: skip
            return Start(made, origin.checkpoint if shared else None)
        return None

    def _last(self, origin: Trial, finals: Selected) -> Iterator[tuple[Purpose, int, float]]:
        if origin.spec.method in self.refits:
            yield from (("refit", repeat, 1.0) for repeat in range(self.selection.repeats("refit")))
        if finals.folds > 1:
            yield from (("curve", number, share) for number, share in enumerate(THINNER))

    def _curve_pays(self, origin: Trial, history: History, ledger: Ledger) -> bool:
        if not self._learns(origin):
            return origin.checkpoint is not None
        searched = history.search_effort()
        # What is under way counts as the whole that it will be, so that the number of slots decides nothing.
        trained = [t for t in history.trials.values() if t.spec.purpose != "search" and t.spec.parent is None]
        spent = sum((origin if t.status == "running" else t).effort for t in trained)
        bears = spent + origin.effort <= SHARE * searched
        return bears and self._affordable([origin], "curve", history, ledger)

    def _affordable(self, origins: Sequence[Trial], purpose: Purpose, history: History, ledger: Ledger) -> bool:
        """Whether trainings like these fit beside those that must come: the winner's refit, and what is under way."""
        finals = history.finals
        assert finals is not None
        by_number: Mapping[int, Trial] = {t.spec.trial: t for t in history.search()}
        must: list[tuple[Trial, float]] = [(t, 1.0) for t in origins if self._learns(t)]
        if purpose == "fold":
            refitted = [by_number[number] for number in finals.trials if by_number[number].spec.method in self.refits]
            must += [(max(refitted, key=_size), 1.0)] if refitted else []
        under_way = [t for t in history.open() if t.spec.parent is None]
        must += [(by_number[t.spec.trial], self._left_of(t, by_number[t.spec.trial])) for t in under_way]
        return ledger.allows(history, must)

    @staticmethod
    def _left_of(trial: Trial, origin: Trial) -> float:
        """The share of a training that is still to come, by how far its configuration came in the search."""
        return float(np.clip(1 - trial.epochs / max(origin.epochs, 1e-9), 0.0, 1.0))
