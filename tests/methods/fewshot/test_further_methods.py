"""metric_learning and selfsup_fewshot."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from methods.batch import EpisodeShape
from methods.contracts import TrainingError
from methods.data.views import RotatedImages
from methods.fewshot import metric_learning, selfsup_fewshot
from methods.fewshot.metric_learning import LOSSES
from methods.parts.auxiliary import NeighbourTask, TurnTask
from methods.parts.losses import triplet
from search_spaces.domains import UserError

SHAPE = {"ways": 4, "shots": 2, "queries": 2, "tasks": 2}


def learn(learner, step, steps: int, lr: float = 0.02) -> list[dict[str, float]]:
    optimizer = torch.optim.Adam(learner.parameters(), lr=lr)
    found = []
    for number in range(steps):
        loss = learner.loss(step(learner, number))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        found.append({"total": float(loss.total.detach()), **{name: float(value) for name, value in loss.parts.items()}})
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_every_metric_loss_teaches_to_tell_new_images_apart(make, step, episodes, loss) -> None:
    learner = make(metric_learning.METHOD, **SHAPE, loss=loss, augmentation_strength=0.0)
    found = learn(learner, step, 60)
    assert sum(row["accuracy"] for row in found[-10:]) / 10 > (0.6 if loss == "n_pair" else 0.8)  # chance is .25
    for shape in (EpisodeShape(2, 2, 1, 1), EpisodeShape(1, 7, 2, 3)):
        assert learner.query_logits(episodes(shape)).shape == (shape.tasks, shape.ways * shape.queries, shape.ways)


@pytest.mark.parametrize("mining", ["all", "semi_hard", "hardest"])
def test_metric_losses_stay_inside_their_episode(make, step, mining) -> None:
    learner = make(metric_learning.METHOD, **SHAPE, mining=mining, augmentation_strength=0.0).eval()
    now = step(learner)
    expected = 0.0
    for t in range(2):
        z = learner.encoder()(torch.cat([now.episodes.support[t], now.episodes.query[t]]))
        label = torch.cat([now.episodes.support_label[t], now.episodes.query_label[t]])
        expected += float(triplet(normalize(z, dim=1).detach(), label, 0.5, mining)) / 2
    assert float(learner.loss(now).total.detach()) == pytest.approx(expected, rel=1e-5)


def test_contrastive_forms_differ(make, step) -> None:
    totals = {
        float(learner.loss(step(learner)).total.detach())
        for form in ("hadsell", "squared")
        for learner in [make(metric_learning.METHOD, **SHAPE, loss="contrastive", form=form, mining="all", margin=2.0)]
    }
    assert len(totals) == 2


@pytest.mark.parametrize("kind", ["prototypical", "cosine"])
@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_pretext_loss_is_added_with_its_weight(make, step, kind, weight) -> None:
    learner = make(selfsup_fewshot.METHOD, **SHAPE, learner=kind, auxiliary_weight=weight, batch_size=16)
    found = learner.loss(step(learner))
    plain = make(selfsup_fewshot.METHOD, **SHAPE, learner=kind, auxiliary_weight=0.0, batch_size=16).loss(step(learner))
    expected = plain.total.detach() + weight * found.parts["pretext_loss"]
    torch.testing.assert_close(found.total.detach(), expected)


@pytest.mark.parametrize(("kind", "turned"), [("prototypical", {}), ("prototypical", {"rotations": True}), ("cosine", {})])
def test_both_tasks_are_learned(make, step, kind, turned) -> None:
    """Where classes are turned too, the task is about images as they came: of others nothing tells the turn."""
    learner = make(selfsup_fewshot.METHOD, **SHAPE, **turned, learner=kind, batch_size=24, augmentation_strength=0.0)
    found = learn(learner, step, 150)
    for name, bar in (("accuracy", 0.5), ("pretext_accuracy", 0.4)):  # chance is .25 or less, and .25
        assert sum(row[name] for row in found[-15:]) / 15 > bar, name
    assert (learner.predictor() is not None) == (kind == "cosine")


def test_turned_data_cannot_be_asked_for_its_turn(make, data) -> None:
    object.__setattr__(data, "images", RotatedImages(data.images))
    with pytest.raises(TrainingError, match=r"few_shot\.rotations has turned them; take relative_patch"):
        make(selfsup_fewshot.METHOD, **SHAPE)


def test_pretext_passes_leave_the_running_statistics_alone(make, step) -> None:
    statistics = []
    for weight in (0.0, 5.0):
        learner = make(selfsup_fewshot.METHOD, **SHAPE, auxiliary_weight=weight)
        learner.loss(step(learner))
        statistics.append(learner.f.norm.running_mean.clone())
    torch.testing.assert_close(*statistics)
    assert statistics[0].abs().max() > 0


def test_turns_are_drawn_evenly_and_undone_by_their_target(make, step) -> None:
    learner = make(selfsup_fewshot.METHOD, **SHAPE, augmentation_strength=0.0)
    now = step(learner)

    class Seen:
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            self.images = images
            return images.flatten(1)[:, :6]

    images = torch.cat([now.episodes.support, now.episodes.query], dim=1).flatten(0, 1).float() / 255
    draws = now.episodes.stream.per(16)
    task = TurnTask(learner.f)
    seen = Seen()
    _, target = task.logits(seen, images, draws)
    assert target.unique().tolist() == [0, 1, 2, 3]
    for turned, image, k in zip(seen.images, images, target.tolist(), strict=True):
        assert torch.equal(torch.rot90(turned, -k, (1, 2)), image)


def test_neighbours_need_patches_large_enough(make, data) -> None:
    encoder = make(selfsup_fewshot.METHOD).f
    with pytest.raises(UserError, match="patches must be at least"):
        NeighbourTask(encoder, (1, 8, 8), "selfsup_fewshot")
    task = NeighbourTask(encoder, (1, 28, 28), "selfsup_fewshot")
    images = torch.rand(4, 1, 28, 28)
    draws = _draws(4)
    logits, target = task.logits(encoder, images, draws)
    assert logits.shape == (32, 8)
    assert target.tolist() == list(range(8)) * 4


def _draws(n: int):
    from methods.batch import RandomStream

    return RandomStream(0, n, slice(0, n), torch.device("cpu"))
