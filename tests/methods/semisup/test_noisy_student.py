"""Noisy student: stages, unnoised labels, a larger student, handing over, and the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.data.records import Split
from methods.parts.dropout import dropout
from methods.parts.encoders import EncoderSpec, parameter_count
from methods.parts.labelling import label_pool
from methods.semisup import noisy_student
from methods.semisup.noisy_student import Student, Teacher
from methods.training import Training, TrainSettings
from methods.world import World
from search_spaces.domains import build


def test_stages_are_a_teacher_and_its_generations() -> None:
    stages = build(noisy_student.Config, {"generations": 3, "teacher_share": 0.4}).plan()
    assert [s.learner for s in stages] == [Teacher, Student, Student, Student]
    assert [s.share for s in stages] == pytest.approx([0.4, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_student_loss_equals_plain_loops(harness: Any, loops: Any, targets: str) -> None:
    knobs = {"mu": 3, "targets": targets, "threshold": 0.5, "dropout": 0.25}
    teacher = harness(noisy_student, **knobs).learner
    with torch.no_grad():
        teacher.model.head.weight.mul_(6)
    h = harness(noisy_student, stage=1, previous=teacher, **knobs)
    step = h.step()
    loss = h.loss(step)
    labelled, pool, model = step.from_labelled(), step.from_pool(), h.learner.model
    x, u = h.of("noise")
    raw = pool.images.float() / 255
    pseudo = [loops.softmax(row) for row in loops.rows(teacher.model, raw)]  # an unnoised teacher on plain images
    torch.testing.assert_close(
        h.learner.pseudo[pool.index].double(), torch.tensor(pseudo, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )

    def noised(images: torch.Tensor, draws: Any) -> list[list[float]]:
        return model.head(dropout(model.encoder(images), 0.25, draws.fork("dropout"))).tolist()

    labels = labelled.labels().tolist()
    supervised = loops.mean([loops.cross_entropy(r, t) for r, t in zip(noised(x, labelled.stream), labels, strict=True)])
    terms = []
    for row, q in zip(noised(u, pool.stream), pseudo, strict=True):
        target = q.index(max(q)) if targets == "hard" else q
        terms.append(loops.cross_entropy(row, target) if max(q) >= 0.5 else 0.0)
    assert 0 < sum(t > 0 for t in terms) < 12
    assert loss.total.item() == pytest.approx(supervised + loops.mean(terms), rel=1e-4)


def test_the_student_may_be_wider_and_takes_over_at_half_time(harness: Any) -> None:
    teacher = harness(noisy_student, flat=False, size=16).learner
    h = harness(noisy_student, stage=1, previous=teacher, flat=False, size=16, student_width=2.0)
    student = h.learner
    assert parameter_count(student.model) > 3 * parameter_count(teacher.model)
    assert not any(p.requires_grad for p in student.teacher.parameters())
    assert student.predictor() is student.teacher.module
    assert student.encoder() is student.teacher.module.encoder
    student.after_step(h.step(progress=0.49))
    assert student.predictor() is student.teacher.module
    student.after_step(h.step(progress=0.51))
    assert student.predictor() is student.model


def test_each_generation_is_taught_by_the_one_before(make_split: Callable[..., Split]) -> None:
    config = build(noisy_student.Config, {"batch_size": 8, "mu": 1, "generations": 2, "teacher_share": 0.34})
    data = make_split(4, 8, 4, 16).train
    training = Training(noisy_student.METHOD, config, data, TrainSettings(3, EncoderSpec(), epoch_images=64, precision="fp32"))
    answers = []
    while training.epoch < 3:
        training.train_epoch()
        if isinstance(training.learner, Student):
            taught_by = training.learner.teacher.module
            torch.testing.assert_close(training.learner.pseudo, label_pool(taught_by, data.images, World()))
            answers.append(taught_by.head.weight.clone())
    assert training.stage.name == "student 2"
    assert training.learner.predictor() is training.learner.model
    assert len(answers) >= 2
    assert not torch.equal(answers[0], answers[-1])


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_it_goes_on_from_after_every_epoch(make_split: Callable[..., Split], width: float) -> None:
    """A wide student's teacher is wide too, from the second generation on."""
    config = build(noisy_student.Config, {"batch_size": 8, "mu": 1, "generations": 2, "student_width": width})
    data, settings = make_split(4, 8, 4, 16).train, TrainSettings(4, EncoderSpec(), epoch_images=64, precision="fp32")
    whole = Training(noisy_student.METHOD, config, data, settings)
    resumed: Training | None = None
    while whole.epoch < 4:
        parts = whole.train_epoch().parts
        if resumed is not None:
            assert resumed.train_epoch().parts == parts, whole.epoch
        resumed = Training(noisy_student.METHOD, config, data, settings)
        resumed.load(copy.deepcopy(whole.state()))
