"""What a search has seen of the encoders that it compares: which are still to be met, and which a method cannot use."""

from __future__ import annotations

import math
from collections import Counter

from orchestrator.engine.events import Ended, Event, TrialStarted
from orchestrator.engine.history import History
from search_spaces.space import Space, Suggestion

TRIES = 2
"""Methods with whose defaults an encoder is tried before a model decides, where the trial with the first of them fails; and
failures of a method with an encoder after which it is no longer tried with it, where it never worked."""


class EncoderTrials:
    """Reads a history event by event. Where the study has one encoder there is nothing to see."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._met: dict[str, set[str]] = {label: set() for label in space.labels}
        self._sound: Counter[str] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._works: set[tuple[str, str]] = set()
        self._defaults: list[str] = []

    def learn(self, event: Event, history: History) -> None:
        """Takes the next event of ``history`` in."""
        match event:
            case TrialStarted() if event.spec.purpose == "search" and event.spec.encoder in self._met:
                self._met[event.spec.encoder].add(event.spec.method)
                self._sound[event.spec.encoder] += 1
                if event.spec.origin == "defaults":
                    self._defaults.append(event.spec.key)
            case Ended():
                spec = history.trials[event.key].spec
                if spec.purpose != "search" or spec.encoder not in self._met:
                    return
                pair = spec.method, spec.encoder
                if event.status == "failed":
                    self._sound[spec.encoder] -= 1
                    self._failed[pair] += 1
                else:
                    self._works.add(pair)

    def first(self, history: History) -> Suggestion | None:
        """The first trial of an encoder with which no trial has run, or only such as failed: the defaults of the method that
        has scored best so far with its defaults, among those that may be tried with it. None where all are met.
        """
        for label, tried in self._met.items():
            if self._sound[label] or len(tried) >= TRIES:
                continue
            open_to = [name for name in self.space.methods_with(label) if name not in tried]
            scores = dict.fromkeys(open_to, -math.inf)
            for trial in (history.trials[key] for key in self._defaults):
                if trial.spec.method in scores and trial.value is not None:
                    scores[trial.spec.method] = max(scores[trial.spec.method], trial.value)
            if open_to:
                return self.space.defaults(max(open_to, key=scores.__getitem__), label)
        return None

    def hopeless(self, suggestion: Suggestion) -> bool:
        """Whether the method can most likely not use the encoder: Optuna's models learn nothing of failed trials."""
        pair = suggestion.method, suggestion.encoder
        return pair not in self._works and self._failed[pair] >= TRIES
