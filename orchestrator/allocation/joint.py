"""One model over everything: Optuna's TPE over methods and their knobs together, conditional on the method.

Semantics that Ray's own OptunaSearch does not have: every method's defaults come first, with the method's first encoder; then
each further encoder once, with the defaults of the method that has scored best so far; the supervised baseline is tuned with
no fewer trials than the others get on average; a trial stopped early is told as pruned with its intermediate values, a
diverged or failing one as failed; nothing is left running. Each suggestion is a fixed
function of the seed and of what has been told, so a replayed journal searches on as if it had never stopped.

It learns little of any method but the best: TPE takes its good trials from the whole search and then keeps of those the ones
that have a method's knobs. And what a suggestion costs grows with the search. Both are why there are two levels.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import optuna
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from pydantic import Field as Number

from methods.batch import seed_of
from orchestrator.allocation.contract import Field
from orchestrator.allocation.encoders import EncoderTrials
from orchestrator.allocation.standings import BASELINE
from orchestrator.engine.events import Ended, Event, Scored, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Trial
from orchestrator.samplers.frozen import STATES, first_trial, frozen, identity, suggestion_of
from search_spaces.space import METHOD, Space, Suggestion

_ATTEMPTS, _MODELLED = 100, 10
"""How often a configuration that was tried before is asked anew, and how often of these the model is asked: it likes to
repeat itself in a small space, where chance finds what is left. After that a configuration is tried again.
"""


@dataclass(frozen=True)
class JointTpe:
    """``allocation: tpe``: the model that chooses the method chooses the knobs as well.

    Attributes:
        startup: random trials before anything is modelled, the defaults among them; None for twice the methods, 10 at least.
    """

    startup: Annotated[int, Number(ge=1)] | None = None

    def why(self, field: Field) -> str:
        """Why the methods have got the trials that they have, for people: a clause that ends a sentence."""
        return "one model over all methods and knobs (TPE) went where the best scores of the whole search were"


class Joint:
    """Suggests configurations and learns from their scores.

    Args:
        space: what may be tried.
        seed: of the suggestions.
        startup: as in ``JointTpe``; the first trials of methods and encoders count among them.
    """

    def __init__(self, space: Space, seed: int, startup: int | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed = space, seed
        self.startup = startup if startup is not None else max(10, 2 * len(space.methods), space.first_trials)
        self.study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._tried: Counter[str] = Counter()
        self._encoders = EncoderTrials(space)
        self._open: dict[str, optuna.Trial] = {}
        self._reported: set[tuple[str, int]] = set()
        self._seen: set[tuple[object, ...]] = set()
        self._read = 0

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
        return self._held_to(BASELINE, sampler)

    def _held_to(self, method: str, sampler: BaseSampler) -> BaseSampler:
        """The sampler, which then suggests for this method alone."""
        if len(self.space.methods) == 1:
            return sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return PartialFixedSampler({METHOD: method}, sampler)

    def propose(self, history: History, method: str | None = None) -> Configuration:
        """The next configuration to try: the methods' defaults in the study's order, then each further encoder's first trial,
        then what the model suggests.

        Args:
            history: of the study, always the same one; what is new in it is learnt first.
            method: suggest for this method alone: its defaults first.
        """
        self._catch_up(history)
        untried = next((name for name in self.space.methods if not self._tried[name]), None) if method is None else None
        if method is not None and not self._tried[method]:
            untried = method
        if untried is not None:
            return first_trial(self.space.defaults(untried))
        if method is None and (unmet := self._encoders.first(history)) is not None:
            return first_trial(unmet)
        for attempt in range(_ATTEMPTS):
            number = self._asked * _ATTEMPTS + attempt
            sampler = self._sampler(number) if attempt < _MODELLED else self._chance(number)
            # Where nothing is left to try of the baseline, a trial is worth more elsewhere.
            if method is not None:
                self.study.sampler = self._held_to(method, sampler)
            else:
                self.study.sampler = self._fair(sampler) if attempt < _ATTEMPTS // 2 else sampler
            trial = self.study.ask()
            suggestion = self.space.suggest(trial)
            # Only a draft: Optuna keeps what it drew for every method in it, which a journal does not know.
            self.study.tell(trial, state=TrialState.FAIL)
            if identity(suggestion) not in self._seen and not self._encoders.hopeless(suggestion):
                break
        return Configuration(suggestion.method, suggestion.values, "sampled", suggestion.encoder)

    def _catch_up(self, history: History) -> None:
        """Learns what has happened since it was last asked."""
        for event in history.events[self._read :]:
            self._learn(event, history)
            self._encoders.learn(event, history)
        self._read = len(history.events)

    def _learn(self, event: Event, history: History) -> None:
        match event:
            case TrialStarted() if event.spec.purpose == "search":
                self._enter(event.spec.key, suggestion_of(event.spec))
            case Scored() if event.key in self._open:
                step = round(event.rung.epoch)
                # A rung that is scored again after a resume counts once.
                if (event.key, step) not in self._reported:
                    self._reported.add((event.key, step))
                    self._open[event.key].report(event.rung.value, step)
            case Ended() if event.key in self._open:
                trial, state = self._open.pop(event.key), STATES[event.status]
                value = history.trials[event.key].value if state == TrialState.COMPLETE else None
                self.study.tell(trial, value, state=state)

    def _enter(self, key: str, suggestion: Suggestion) -> None:
        """Takes a configuration as the next trial: every trial opens here, so that a replayed one equals a live one."""
        parameters, _ = self.space.parameters(suggestion)
        self.study.sampler = self._chance(self._asked * _ATTEMPTS)
        self.study.enqueue_trial(parameters)
        trial = self.study.ask()
        self.space.suggest(trial)
        trial.set_user_attr("key", key)
        self._open[key] = trial
        self._seen.add(identity(suggestion))
        self._tried[suggestion.method] += 1

    def seed_from(self, trials: Iterable[Trial]) -> int:
        """Learns from another study's ended trials on methods that both search; returns how many."""
        useful = [t for t in trials if t.spec.method in self.space.configs and t.status in ("finished", "pruned") and t.rungs]
        for trial in useful:
            self.study.add_trial(frozen(self.space, trial))
        return len(useful)
