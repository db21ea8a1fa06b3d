"""Distillation from tuned models: the student's loss in plain float64, and who teaches it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from methods.adapt import distill
from methods.parts.labelling import Frozen
from methods.testing import case_of
from search_spaces.domains import build

PLAIN: dict[str, Any] = {"views": "one", "augmentation": "weak"}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("count", [1, 2])
def test_the_students_loss_by_its_formula(
    harness: Callable[..., Any], loops: SimpleNamespace, count: int, temperature: float
) -> None:
    knobs = {**PLAIN, "teachers": count, "distil_temperature": temperature, "distil_weight": 0.3}
    previous = None
    for stage in range(count):
        previous = harness(distill, stage, previous, **knobs).learner
        nn.init.normal_(previous.tuning.model.head[2].weight, generator=torch.Generator().manual_seed(stage))
    made = harness(distill, count, previous, **knobs)
    learner = made.learner
    assert len(learner.teachers) == count
    nn.init.normal_(learner.model.head[2].weight, generator=torch.Generator().manual_seed(9))  # no longer its teacher
    step = made.step()
    loss = made.loss(step)
    x, u = made.of("augment")
    every = [loops.rows(teacher, step.pool.images) for teacher in learner.teachers]
    supervised = [
        loops.cross_entropy(row, int(label))
        for row, label in zip(loops.rows(learner.model, x), step.labelled.label, strict=True)
    ]
    distilled = []
    for place, row in enumerate(loops.rows(learner.model, u)):
        p = [loops.softmax(rows[place]) for rows in every]
        mean = [sum(values) / count for values in zip(*p, strict=True)]
        raised = [value ** (1 / temperature) for value in mean]
        distilled.append(loops.cross_entropy(row, [value / sum(raised) for value in raised]))
    expected = 0.7 * loops.mean(supervised) + 0.3 * loops.mean(distilled)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert loss.pseudo_labels is not None
    assert torch.equal(loss.pseudo_labels.index, step.pool.index)


def test_teachers_differ_stay_and_the_student_begins_as_the_last() -> None:
    training = case_of(distill.METHOD, {"teachers": 2}).start()
    models = []
    for stage in range(2):
        if stage:
            training.enter(stage)
        training.one_step()
        models.append({name: value.clone() for name, value in training.learner.tuning.model.state_dict().items()})
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
    training.enter(2)
    student = training.learner
    for _ in range(2):
        for teacher, expected in zip(student.teachers, models, strict=True):
            assert isinstance(teacher, Frozen)
            assert not teacher.training
            assert all(torch.equal(value, expected[name]) for name, value in teacher.module.state_dict().items())
        if not training.steps_done:
            assert all(torch.equal(value, models[1][name]) for name, value in student.model.state_dict().items())
        training.one_step()
    assert any(not torch.equal(value, models[1][name]) for name, value in student.model.state_dict().items())


def test_stages_share_the_training() -> None:
    stages = distill.METHOD.plan(build(distill.Config, {"teachers": 3, "teacher_share": 0.6}))
    assert [stage.name for stage in stages] == ["teacher 1", "teacher 2", "teacher 3", "student"]
    assert [stage.share for stage in stages] == pytest.approx([0.2, 0.2, 0.2, 0.4])
