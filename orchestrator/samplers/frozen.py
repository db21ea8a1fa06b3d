"""Ended trials as Optuna stores them."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.engine.records import Trial
from search_spaces.space import Space, Suggestion

STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def frozen(space: Space, trial: Trial) -> FrozenTrial:
    """An ended trial as Optuna stores it."""
    parameters, distributions = space.parameters(Suggestion(trial.spec.method, trial.spec.values))
    state = STATES[trial.status]
    return create_trial(
        state=state,
        value=trial.value if state == TrialState.COMPLETE else None,
        params=parameters,
        distributions=distributions,
        intermediate_values={round(rung.epoch): rung.value for rung in trial.rungs},
        user_attrs={"key": trial.spec.key, "reason": trial.reason, "seconds": trial.seconds},
    )
