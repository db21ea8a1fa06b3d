"""The test of a finalist's model, and of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from methods.batch import seed_of
from methods.data.records import LabelledSubset
from methods.parts.modes import threads
from methods.protocols.confidence import Scaling, reliability
from methods.protocols.contract import Score, Trained, difference_of
from methods.tasks.contract import paired_units
from orchestrator.engine.ensemble import Model, Voting, way_to
from orchestrator.engine.events import Step
from orchestrator.engine.records import SlotSetup, TestScore, TrialSpec
from orchestrator.engine.trial import cost_of, division_of, load_training, trained


def examine(
    setup: SlotSetup,
    spec: TrialSpec,
    checkpoint: str,
    test: LabelledSubset,
    device: torch.device,
    scaling: Scaling | None = None,
) -> TestScore:
    """The test score of the model in ``checkpoint``, what the model costs, and what its confidences are worth.

    Args:
        scaling: what calibrates them; None where nothing does.
    """
    with threads(setup.threads):
        model = trained(load_training(setup, spec, checkpoint, device))
        score = setup.task.test(setup.protocol, model, division_of(setup, spec), test, spec.purpose == "refit", setup.seed)
        return _told(setup, spec, model, score, scaling)


def examine_steps(
    setup: SlotSetup, models: Sequence[Model], scaling: Scaling, test: LabelledSubset, device: torch.device
) -> tuple[Step, ...]:
    """The test of each step from the winner alone to all the models together, and what it gained.

    Args:
        models: those that vote, the winner's first.
        scaling: what calibrates the whole, the last step.
    """
    with threads(setup.threads):
        voting, before, found = Voting(setup, device), None, []
        steps = way_to(models)
        for name, several in steps.items():
            model, spec = voting.together(several), several[0].spec
            score = setup.task.test(setup.protocol, model, setup.split, test, False, setup.seed)
            units = paired_units(score)
            assert units is not None, "a classifier's answers are means over images"
            if name is not None and before is not None:
                gap = difference_of(units.astype(np.float64) - before, units.dtype == before.dtype == bool)
                whole = scaling if several is steps[list(steps)[-1]] else None
                found.append(Step(name, _told(setup, spec, model, score, whole), gap.mean, gap.low, gap.high))
            before = units
        return tuple(found)


def _told(setup: SlotSetup, spec: TrialSpec, model: Trained, score: Score, scaling: Scaling | None) -> TestScore:
    answers, seed = score.answers, seed_of(setup.seed, "reliability")
    sure = None if scaling is None or answers is None else reliability(answers, scaling, seed)
    return TestScore(spec.key, spec.trial, score.value, score.n, score.low, score.high, *cost_of(model, setup.split), sure)
