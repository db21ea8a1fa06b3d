"""The test of a finalist's model."""

from __future__ import annotations

import torch

from methods.batch import seed_of
from methods.data.records import LabelledSubset
from methods.parts.modes import threads
from methods.protocols.confidence import Scaling, reliability
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
        answers, seed = score.answers, seed_of(setup.seed, "reliability")
        sure = None if scaling is None or answers is None else reliability(answers, scaling, seed)
        return TestScore(spec.key, spec.trial, score.value, score.n, score.low, score.high, *cost_of(model, setup.split), sure)
