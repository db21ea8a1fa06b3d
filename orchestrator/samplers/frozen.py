"""Suggestions and trials in each other's words, and ended trials as Optuna stores them."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.engine.records import Configuration, Trial, TrialSpec
from search_spaces.space import Space, Suggestion

STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def frozen(space: Space, trial: Trial) -> FrozenTrial:
    """An ended trial as Optuna stores it."""
    parameters, distributions = space.parameters(suggestion_of(trial.spec))
    state = STATES[trial.status]
    return create_trial(
        state=state,
        value=trial.value if state == TrialState.COMPLETE else None,
        params=parameters,
        distributions=distributions,
        intermediate_values={round(rung.epoch): rung.value for rung in trial.rungs},
        user_attrs={"key": trial.spec.key, "reason": trial.reason, "seconds": trial.seconds},
    )


def suggestion_of(spec: TrialSpec) -> Suggestion:
    """A trial's configuration as the space knows it."""
    return Suggestion(spec.method, spec.values, spec.encoder)


def first_trial(default: Suggestion) -> Configuration:
    """A method's defaults as a configuration."""
    return Configuration(default.method, default.values, "defaults", default.encoder)


def identity(suggestion: Suggestion) -> tuple[object, ...]:
    """What makes two configurations the same."""
    return suggestion.method, suggestion.encoder, tuple(sorted(suggestion.values.items()))
