"""For people who write what a study's search is made of: a study's course without training, and what each part owes.

``simulate`` runs a study's strategy against a function that pretends to train; the ``check_`` functions raise AssertionError
with a sentence where a contract is broken, and belong into one's own tests.
"""

from __future__ import annotations

from methods.tasks.testing import check_task
from orchestrator.allocation import Allocation, JointTpe
from orchestrator.budgets import Budget, Resources
from orchestrator.choices import strategy_of
from orchestrator.engine.controller import Course
from orchestrator.engine.events import Ended, Event, TrialStarted, decode, encode
from orchestrator.engine.history import History
from orchestrator.engine.selection import Division, Finals
from orchestrator.engine.simulation import Pretend, play
from orchestrator.prepare import course_of
from orchestrator.samplers import Sampler
from orchestrator.strategies import Problem, Strategy
from orchestrator.study import Spending, Study

__all__ = ["Pretend", "check_allocation", "check_budget", "check_sampler", "check_strategy", "check_task", "simulate"]


def simulate(study: Study, score: Pretend, slots: int = 1) -> list[Event]:
    """The events of a study whose trials only pretend to train, selection included (its refits are those of labels).

    Args:
        study: its data is not loaded; knobs that depend on the number of images are searched without that limit.
        score: what training gives, and how long it takes.
        slots: trials at a time.
    """
    course = _course(study, slots)
    for budget in course.ledger.budgets:
        budget.check(Resources(slots), course.problem.top)
    return play(course, score, slots, study.trials)


def check_strategy(strategy: Strategy, study: Study, score: Pretend, slots: int = 2) -> History:
    """Holds a strategy to its contract, on a simulated study.

    The same study twice gives the same course; a history that was read back from its journal leads to the same decision as the
    one that grew; every trial ends; and no more trials start than the budget allows.

    Returns:
        The study's history.
    """
    return _check_search(study.model_copy(update={"strategy": strategy}), score, slots)


def check_allocation(allocation: Allocation | JointTpe, study: Study, score: Pretend, slots: int = 2) -> History:
    """Holds an allocation to its contract, on a simulated study: as ``check_strategy``, and every method's defaults come first.

    Returns:
        The study's history.
    """
    history = _check_search(study.model_copy(update={"allocation": allocation}), score, slots)
    first = [(t.spec.method, t.spec.origin) for t in history.search()[: len(study.method_names)]]
    assert first == [(name, "defaults") for name in study.method_names], f"the defaults must come first, got {first}"
    return history


def check_sampler(sampler: Sampler, study: Study, score: Pretend, slots: int = 2) -> History:
    """Holds a sampler to its contract, on a simulated study: as ``check_strategy``, so that it draws alike from a journal.

    Returns:
        The study's history.
    """
    return _check_search(study.model_copy(update={"sampler": sampler}), score, slots)


def _check_search(study: Study, score: Pretend, slots: int) -> History:
    """The history of a study that was held to what every search owes."""
    strategy = strategy_of(study)
    events = simulate(study, score, slots)
    assert events == simulate(study, score, slots), "the same study twice must take the same course"
    history = History(events)
    left = [trial.spec.key for trial in history.trials.values() if trial.status == "running"]
    assert not left, f"every trial must end, but {left[0]} does not"
    if study.trials is not None:
        assert len(history.search()) <= study.trials, f"{len(history.search())} trials started, {study.trials} were asked for"
    assert history.selected is not None, "the search must come to its end"
    # One history that grows, with a sampler that has learnt on the way, against a fresh replay at each of some points.
    grown, problem = History(events[:2]), _problem(study, slots)
    step = max(1, len(events) // 20)
    for cut in range(2, len(events)):
        # A journal never holds half a turn: a trial without its first segment, or at the top without its end.
        upcoming = events[cut]
        torn = isinstance(events[cut - 1], TrialStarted) or (isinstance(upcoming, Ended) and upcoming.status == "finished")
        if grown.search_ended is None and cut % step == 0 and not torn:
            read = History([decode(encode(event).encode()) for event in events[:cut]])
            live, replayed = strategy.next(problem, grown), strategy.next(_problem(study, slots), read)
            assert live == replayed, f"after {cut} events the strategy decides otherwise from the journal"
        grown.add(events[cut])
    return history


def _problem(study: Study, slots: int) -> Problem:
    return _course(study, slots).problem


def _course(study: Study, slots: int) -> Course:
    """As of data of few labels, half of which validate."""
    learns = {name: method.uses_labels for name, method in study.catalogue().items()}
    refits = frozenset(name for name, labels in learns.items() if labels and study.selection.refit)
    label_free = frozenset(name for name, labels in learns.items() if not labels)
    given = study.selection.folds
    division = Division((given,) if isinstance(given, int) else (2, 4), frozenset({2}))
    finals = Finals(study.selection, division, refits, label_free, study.seed)
    return course_of(study, study.space(), finals, Resources(slots), study.trials)


def check_budget(budget: Budget, study: Study, score: Pretend) -> History:
    """Holds a budget to its contract, on a simulated study that has no other.

    What is spent never falls, is a fixed function of the history, and ends the search.
    """
    study = study.model_copy(update={"budget": Spending(own=(budget,)), "trials": None})
    events = simulate(study, score)
    history, resources, before = History(), Resources(), 0.0
    for event in events:
        history.add(event)
        spent = budget.spent(history, resources)
        assert spent >= before, f"what is spent must not fall, but {before} became {spent} with a {event.event} event"
        before = spent
    assert budget.spent(History(events), resources) == before, "a budget must be a fixed function of the history"
    assert history.search_ended is not None, "the search must end when the budget is spent"
    assert str(budget) in history.search_ended.reason, f"the search must end by this budget, got {history.search_ended.reason}"
    return history
