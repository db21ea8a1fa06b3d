"""The search: an Optuna study, conditional on the method, asked and told in this project's words.

Semantics that Ray's own OptunaSearch does not have: every method's defaults come first; the supervised baseline is tuned with
no fewer trials than the others get on average; a trial stopped early is told as pruned with its intermediate values, a
diverged or failing one as failed; nothing is left running. Each suggestion is a fixed
function of the seed and of what has been told, so a replayed journal searches on as if it had never stopped.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from methods.batch import seed_of
from orchestrator.engine.records import Trial
from search_spaces.domains import Value
from search_spaces.space import METHOD, Space, Suggestion

_ATTEMPTS, _MODELLED = 100, 10
"""How often a configuration that was tried before is asked anew, and how often of these the model is asked: it likes to
repeat itself in a small space, where chance finds what is left. After that a configuration is tried again.
"""

BASELINE = "supervised"
"""The method whose trials are kept up with the others': a yardstick tuned less than what it measures flatters everything
(Oliver et al. 2018, arXiv:1804.09170)."""

_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Search:
    """Suggests configurations and learns from their scores.

    Args:
        space: what may be tried.
        seed: of the sampler.
        startup: random trials before the sampler models anything; the methods' defaults count among them.
    """

    def __init__(self, space: Space, seed: int, startup: int | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed = space, seed
        self.startup = startup if startup is not None else max(10, 2 * len(space.methods))
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._tried: Counter[str] = Counter()
        self._open: dict[str, optuna.Trial] = {}
        self._reported: set[tuple[str, int]] = set()
        self._seen: set[tuple[str, tuple[tuple[str, Value], ...]]] = set()

    def _sampler(self, number: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed_of(self.seed, "search", number) % 2**32,
                n_startup_trials=self.startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _chance(self, number: int) -> RandomSampler:
        return RandomSampler(seed=seed_of(self.seed, "chance", number) % 2**32)

    @property
    def _asked(self) -> int:
        return self._tried.total()

    def _fair(self, sampler: BaseSampler) -> BaseSampler:
        """The sampler, held to the baseline where that would else have had fewer trials than a method's share."""
        methods = self.space.methods
        if BASELINE not in methods or len(methods) == 1 or self._tried[BASELINE] * len(methods) > self._asked:
            return sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return PartialFixedSampler({METHOD: BASELINE}, sampler)

    def ask(self, key: str) -> Suggestion:
        """The next configuration, remembered under ``key`` until it is told."""
        if self._asked < len(self.space.methods):
            return self.enter(key, self.space.defaults(self.space.methods[self._asked]))
        for attempt in range(_ATTEMPTS):
            number = self._asked * _ATTEMPTS + attempt
            sampler = self._sampler(number) if attempt < _MODELLED else self._chance(number)
            # Where nothing is left to try of the baseline, a trial is worth more elsewhere.
            self._study.sampler = self._fair(sampler) if attempt < _ATTEMPTS // 2 else sampler
            trial = self._study.ask()
            suggestion = self.space.suggest(trial)
            # Only a draft: Optuna keeps what it drew for every method in it, which a journal does not know.
            self._study.tell(trial, state=TrialState.FAIL)
            if _identity(suggestion) not in self._seen:
                break
        return self.enter(key, suggestion)

    def enter(self, key: str, suggestion: Suggestion) -> Suggestion:
        """Takes a given configuration as the next one: every trial opens here, so that a replayed one equals a live one."""
        parameters, _ = self.space.parameters(suggestion)
        self._study.sampler = self._chance(self._asked * _ATTEMPTS)
        self._study.enqueue_trial(parameters)
        trial = self._study.ask()
        self.space.suggest(trial)
        trial.set_user_attr("key", key)
        self._open[key] = trial
        self._seen.add(_identity(suggestion))
        self._tried[suggestion.method] += 1
        return suggestion

    def report(self, key: str, epoch: int, value: float) -> None:
        """A score on the way. A rung that is scored again after a resume counts once."""
        if (key, epoch) not in self._reported:
            self._reported.add((key, epoch))
            self._open[key].report(value, epoch)

    def tell(self, key: str, status: str, value: float | None) -> FrozenTrial:
        """The trial's end: ``finished`` with its value, ``pruned`` or ``failed``."""
        trial = self._open.pop(key)
        state = _STATES[status]
        return self._study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)

    def replay(self, trials: Iterable[Trial]) -> None:
        """Learns what a journal tells of ended trials of this study."""
        for trial in trials:
            suggestion = Suggestion(trial.spec.method, trial.spec.values)
            self._study.add_trial(self.frozen(trial))
            self._seen.add(_identity(suggestion))
            self._tried[suggestion.method] += 1

    def seed_from(self, trials: Iterable[Trial]) -> int:
        """Learns from another study's ended trials on methods that both search; returns how many."""
        useful = [t for t in trials if t.spec.method in self.space.configs and t.status in ("finished", "pruned") and t.rungs]
        for trial in useful:
            self._study.add_trial(self.frozen(trial))
        return len(useful)

    def frozen(self, trial: Trial) -> FrozenTrial:
        """An ended trial as Optuna stores it."""
        parameters, distributions = self.space.parameters(Suggestion(trial.spec.method, trial.spec.values))
        state = _STATES[trial.status]
        return create_trial(
            state=state,
            value=trial.value if state == TrialState.COMPLETE else None,
            params=parameters,
            distributions=distributions,
            intermediate_values={rung.epoch: rung.value for rung in trial.rungs},
            user_attrs={"key": trial.spec.key, "reason": trial.reason, "seconds": trial.seconds},
        )


def _identity(suggestion: Suggestion) -> tuple[str, tuple[tuple[str, Value], ...]]:
    return suggestion.method, tuple(sorted(suggestion.values.items()))
