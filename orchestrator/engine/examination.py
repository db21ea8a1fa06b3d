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
from orchestrator.engine.distillation import UNCALIBRATED, student_of
from orchestrator.engine.ensemble import Model, Voting, way_to
from orchestrator.engine.events import Distilled, Step, StepName
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
    setup: SlotSetup,
    models: Sequence[Model],
    scaling: Scaling,
    test: LabelledSubset,
    device: torch.device,
    distilled: Distilled | None = None,
) -> tuple[Step, ...]:
    """The test of each step from the winner alone to all the models together, and as one, and what it gained.

    Args:
        models: those that vote, the winner's first.
        scaling: what calibrates all together.
        distilled: the one model that learnt from them, which has their calibrated probabilities by itself.
    """
    with threads(setup.threads):
        voting, before, found = Voting(setup, device), None, []
        way: list[tuple[StepName | None, Trained, Scaling]] = []
        for name, several in way_to(models).items():
            way.append((name, voting.together(several), scaling))
        if distilled is not None:
            way.append(("distilled", student_of(setup, distilled, device), UNCALIBRATED))
        for name, model, own in way:
            spec = models[0].spec
            score = setup.task.test(setup.protocol, model, setup.split, test, False, setup.seed)
            units = paired_units(score)
            assert units is not None, "a classifier's answers are means over images"
            if name is not None and before is not None:
                gap = difference_of(units.astype(np.float64) - before, units.dtype == before.dtype == bool)
                whole = own if model is way[-1][1] else None
                found.append(Step(name, _told(setup, spec, model, score, whole), gap.mean, gap.low, gap.high))
            before = units
        return tuple(found)


def _told(setup: SlotSetup, spec: TrialSpec, model: Trained, score: Score, scaling: Scaling | None) -> TestScore:
    answers, seed = score.answers, seed_of(setup.seed, "reliability")
    sure = None if scaling is None or answers is None else reliability(answers, scaling, seed)
    return TestScore(spec.key, spec.trial, score.value, score.n, score.low, score.high, *cost_of(model, setup.split), sure)
