"""One method's trials as Optuna sees them, and what a sampler draws from them.

Optuna's TPE ranks a stopped trial below every finished one, whatever its score, since it knows no rungs. Here a method's trials
are put in order at the rungs: by the first score of each, then, at every further rung, those that have reached it change
places among themselves by their scores there. So a trial that was let through to the top for another reason than its scores
(the defaults are) does not pass for one of the best. The newest scores are dealt out in that order. A trial that failed
counts as the worst.

Optuna's own storage is not used: asking it again and again what it holds costs more the more it holds.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from methods.batch import seed_of
from methods.training.clock import Fidelity
from orchestrator.samplers.contract import Draw, Sampler
from search_spaces.space import Space, Suggestion

MODELLED = 200
"""The latest trials of a method that are modelled, at the most: what a draw costs stays the same however long a search is."""

_TIME = datetime.datetime(2000, 1, 1)


@dataclass
class Told:
    """A trial of the method.

    Attributes:
        frozen: as Optuna sees it.
        scores: finite ones by rung.
        failed: whether its training failed.
    """

    frozen: FrozenTrial
    scores: dict[Fidelity, float] = field(default_factory=dict)
    failed: bool = False


@dataclass
class Notes:
    """What an Optuna sampler has written down while it drew, on the trial and on the study."""

    trial: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)


class _Window(InMemoryStorage):
    """Holds the trials that it is given and those notes that belong to trials which were started."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[FrozenTrial] = []
        self.kept: dict[str, Any] = {}
        self.notes = Notes()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.shown if states is None or trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return next(trial for trial in self.shown if trial._trial_id == trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.notes.trial[key] = self.get_trial(trial_id).system_attrs[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {**self.kept, **self.notes.study}

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.notes.study[key] = value


class Model:
    """The trials of one method, and draws of further ones.

    Args:
        space: of this method alone.
        sampler: draws.
        seed: of all draws of the study.
    """

    def __init__(self, space: Space, sampler: Sampler, seed: int) -> None:
        (self.method,) = space.methods
        self.space, self.sampler, self.seed = space, sampler, seed
        self.told: dict[str, Told] = {}
        self._names = space.axes(self.method)
        self._storage = _Window()
        self._study_id = self._storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], self.method)

    def enter(self, key: str, configuration: Suggestion, notes: Notes | None = None) -> None:
        """A trial of the method has started. ``notes``: the sampler's on the draw that it came from."""
        notes = notes or Notes()
        parameters, distributions = self.space.parameters(configuration)
        self.told[key] = Told(_frozen(len(self.told), parameters, distributions, notes.trial))
        self._storage.kept |= notes.study

    def score(self, key: str, at: Fidelity, value: float) -> None:
        """A trial was scored at a rung."""
        if math.isfinite(value):
            self.told[key].scores[at] = value

    def fail(self, key: str) -> None:
        """A trial's training failed."""
        self.told[key].failed = True

    def _latest(self) -> list[Told]:
        return list(self.told.values())[-MODELLED:] if len(self.told) > MODELLED else list(self.told.values())

    def draw(self, number: int, attempt: int) -> tuple[Suggestion, Notes]:
        """The sampler's suggestion and its notes on it.

        Args:
            number: which of the method's trials it is for.
            attempt: how many draws for it have been made before, each of which repeated an earlier configuration.
        """
        latest = self._latest()
        seed = seed_of(self.seed, "knobs", self.method, number, attempt) % 2**32
        stream = seed_of(self.seed, "knobs", self.method) % 2**32
        scored = sum(bool(told.scores) for told in latest)
        sampler = self.sampler.optuna(Draw(seed, stream, max(number, 1) + attempt, scored, self._names))
        return self.by(sampler, latest)

    def by(self, sampler: BaseSampler, latest: Sequence[Told] = ()) -> tuple[Suggestion, Notes]:
        """A suggestion by this Optuna sampler, which sees the trials ``latest``."""
        drawn = _frozen(len(self.told), {}, {}, {})
        self._storage.shown, self._storage.notes = [*_ordered(latest), drawn], Notes()
        # A study object anew: it would remember the trials that it was shown before.
        study = optuna.Study(self.method, self._storage, sampler)
        suggestion = self.space.suggest(_Asked(study, sampler, drawn))
        return suggestion, self._storage.notes


class _Asked:
    """Answers as an Optuna trial does, without being stored."""

    def __init__(self, study: optuna.Study, sampler: BaseSampler, drawn: FrozenTrial) -> None:
        self._study, self._sampler, self._drawn = study, sampler, drawn
        sampler.before_trial(study, drawn)
        self._space = sampler.infer_relative_search_space(study, drawn)
        self._together = sampler.sample_relative(study, drawn, self._space)

    def _ask(self, name: str, distribution: BaseDistribution) -> Any:
        if distribution.single():
            found = distribution.to_external_repr(_only(distribution))
        elif name in self._together and self._space[name] == distribution:
            found = self._together[name]
        else:
            found = self._sampler.sample_independent(self._study, self._drawn, name, distribution)
        self._drawn.distributions = {**self._drawn.distributions, name: distribution}
        self._drawn.params = {**self._drawn.params, name: found}
        return found

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._ask(name, CategoricalDistribution(choices))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._ask(name, IntDistribution(low, high, log=log)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._ask(name, FloatDistribution(low, high, log=log)))


def _only(distribution: BaseDistribution) -> float:
    """The one value of a distribution that has no other, as Optuna stores it."""
    if isinstance(distribution, CategoricalDistribution):
        return 0.0
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return float(distribution.low)


def _frozen(
    number: int, parameters: Mapping[str, Any], distributions: Mapping[str, BaseDistribution], notes: Mapping[str, Any]
) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=_TIME,
        datetime_complete=None,
        params=dict(parameters),
        distributions=dict(distributions),
        user_attrs={},
        system_attrs=dict(notes),
        intermediate_values={},
        trial_id=number,
    )


def _ordered(latest: Sequence[Told]) -> list[FrozenTrial]:
    """The trials as Optuna is shown them: those with a score as complete, the failed below them, the others as running."""
    order = in_order([told.scores for told in latest])
    values = sorted(newest(told.scores) for told in latest if told.scores)
    for place, told in zip(order, values, strict=True):
        _complete(latest[place].frozen, told)
    for told_of in latest:
        if told_of.failed and not told_of.scores:
            _complete(told_of.frozen, values[0] if values else 0.0)
    return [told_of.frozen for told_of in latest]


def _complete(frozen: FrozenTrial, value: float) -> None:
    frozen.state, frozen.value, frozen.datetime_complete = TrialState.COMPLETE, value, _TIME


def newest(scores: Mapping[Fidelity, float]) -> float:
    """The score at the highest rung."""
    return scores[max(scores, key=lambda at: at.amount)]


def in_order(scores: Sequence[Mapping[Fidelity, float]]) -> list[int]:
    """Places of the trials that have a score, worst first: by their first score, and at each further rung those that reached it
    change places by their scores there.
    """
    first = {place: min(of.items(), key=lambda item: item[0].amount) for place, of in enumerate(scores) if of}
    order = sorted(first, key=lambda place: (first[place][1], -place))
    for rung in sorted({at for of in scores for at in of}, key=lambda at: at.amount):
        here = [i for i, place in enumerate(order) if rung in scores[place]]
        for i, place in zip(here, sorted((order[i] for i in here), key=lambda p: (scores[p][rung], -p)), strict=True):
            order[i] = place
    return order
