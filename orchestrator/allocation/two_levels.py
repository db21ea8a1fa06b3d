"""Suggests configurations in two levels: an allocation says of which method, a sampler with which knobs.

Four rules stand above every allocation. Each method's defaults come first, in the study's order, with the method's first
encoder. Where several encoders are compared, each further one is then met once. ``supervised`` gets as many
trials with a score as the leading method had when it overtook it. A method of which nothing is left to try gets no trial while
another has something left.

What has been learnt from a history is kept and added to; a fresh history read from a journal leads to the same suggestions.
"""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.samplers import RandomSampler

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.allocation.contract import Allocation, Field
from orchestrator.allocation.encoders import EncoderTrials
from orchestrator.allocation.standings import BASELINE, Standings
from orchestrator.engine.events import Ended, Event, Scored, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import Configuration, Trial
from orchestrator.samplers.contract import Sampler
from orchestrator.samplers.frozen import first_trial, identity, suggestion_of
from orchestrator.samplers.model import Model, Notes
from search_spaces.domains import UserError
from search_spaces.space import Space, Suggestion

_CHANCES, _MODELLED = 90, 10
"""How often a configuration is drawn by lot before a method counts as tried out, and how often its sampler is asked before
one of these is taken: a model likes to repeat itself in a small space."""


class TwoLevels:
    """Suggests configurations and learns from their scores.

    Args:
        space: what may be tried.
        seed: of the suggestions.
        allocation: which method is next.
        sampler: which knobs it gets.
    """

    def __init__(self, space: Space, seed: int, allocation: Allocation, sampler: Sampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed, self.allocation, self.sampler = space, seed, allocation, sampler
        self.standings = Standings(space.methods)
        self.models = {name: Model(space.only(name), sampler, seed) for name in space.methods}
        self._of: dict[str, Model] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._encoders = EncoderTrials(space)
        # By method: for which of its trials, and what chance found for it.
        self._chance: dict[str, tuple[int, Suggestion | None]] = {}
        # The sampler's notes on the newest draw, the number of events that it was made after, and its method.
        self._drawn: tuple[int, str, Notes] | None = None
        self._read = 0

    def propose(self, history: History, method: str | None = None) -> Configuration:
        """The next configuration to try: the methods' defaults in the study's order, each further encoder's first trial, then
        what allocation and sampler say.

        Args:
            history: of the study, always the same one; what is new in it is learnt first.
            method: suggest for this method alone: its defaults first.
        """
        self._catch_up(history)
        of = self.standings.of
        if method is not None and not of[method].started:
            return self._defaults(method)
        if method is not None:
            return self._suggest(method)
        for name in self.space.methods:
            if not of[name].started:
                return self._defaults(name)
        if (unmet := self._encoders.first(history)) is not None:
            return first_trial(unmet)
        left = tuple(name for name in self.space.methods if self._untried(name) is not None) or self.space.methods
        if BASELINE in left and self.standings.owed():
            return self._suggest(BASELINE)
        chosen = self.allocation.next(Field(self.seed, left, of, history.trials_wanted))
        if chosen not in left:
            raise UserError(
                f"{type(self.allocation).__name__}.next must name one of the methods that it is offered,"
                f" {', '.join(left)}, got {chosen!r}"
            )
        return self._suggest(chosen)

    def _defaults(self, method: str) -> Configuration:
        return first_trial(self.space.defaults(method))

    def _untried(self, method: str) -> Suggestion | None:
        """A configuration of the method by lot that has not been tried; None where chance finds none."""
        number = self.standings.of[method].started
        if method not in self._chance or self._chance[method][0] != number:
            model = self.models[method]
            seeds = (seed_of(self.seed, "chance", method, number, n) % 2**32 for n in range(_CHANCES))
            drawn = (model.by(RandomSampler(seed=seed))[0] for seed in seeds)
            self._chance[method] = number, next(filter(self._worth_it, drawn), None)
        return self._chance[method][1]

    def _suggest(self, method: str) -> Configuration:
        """What the sampler draws; where it only repeats what was tried, one by lot."""
        number, model = self.standings.of[method].started, self.models[method]
        found, notes = model.draw(number, 0)
        for attempt in range(1, _MODELLED):
            if self._worth_it(found):
                break
            found, notes = model.draw(number, attempt)
        if not self._worth_it(found):
            found, notes = self._untried(method) or found, Notes()
        self._drawn = (self._read, method, notes)
        return Configuration(method, found.values, "sampled", found.encoder)

    def _worth_it(self, found: Suggestion) -> bool:
        """Whether it has not been tried, and may work."""
        return identity(found) not in self._seen and not self._encoders.hopeless(found)

    def _catch_up(self, history: History) -> None:
        """Learns what has happened since it was last asked."""
        for place, event in enumerate(history.events[self._read :], start=self._read):
            self._learn(event, place)
            self._encoders.learn(event, history)
        self._read = len(history.events)

    def _learn(self, event: Event, place: int) -> None:
        match event:
            case TrialStarted() if event.spec.purpose == "search" and event.spec.method in self.models:
                spec, model = event.spec, self.models[event.spec.method]
                notes = self._notes(spec.method, place) if spec.origin == "sampled" and self.sampler.remembers else None
                model.enter(spec.key, suggestion_of(spec), notes)
                self._of[spec.key] = model
                self._seen.add(identity(suggestion_of(spec)))
            case Scored() if event.key in self._of:
                self._of[event.key].score(event.key, event.at, event.rung.value)
            case Ended() if event.key in self._of and event.status == "failed":
                self._of[event.key].fail(event.key)
        self.standings.add(event)

    def _notes(self, method: str, place: int) -> Notes:
        """The sampler's notes on the draw that led to this event's trial: made again where another process made it."""
        if self._drawn is None or self._drawn[:2] != (place, method):
            self._read = place
            self._suggest(method)
        assert self._drawn is not None
        return self._drawn[2]

    def seed_from(self, trials: Iterable[Trial]) -> int:
        """Learns from another study's ended trials on methods that both search; returns how many."""
        useful = [t for t in trials if t.spec.method in self.models and t.status in ("finished", "pruned") and t.rungs]
        for number, trial in enumerate(useful):
            model, key = self.models[trial.spec.method], f"earlier-{number}"
            model.enter(key, suggestion_of(trial.spec))
            for rung in trial.rungs:
                model.score(key, Fidelity("epochs", rung.epoch), rung.value)
        return len(useful)
