"""What a learner is shown in each step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from methods.data.records import Split
from methods.world import World


def test_the_pool_is_passed_over_once_before_any_image_returns(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split, epochs=1, epoch_images=192).train_epoch()
    index = torch.cat([step.from_pool().index for step in toys.steps_of()])
    passes = index.view(3, 64)
    for one in passes:
        assert sorted(one.tolist()) == list(range(64))
    assert not torch.equal(passes[0], passes[1])


def test_labelled_images_come_once_a_pass_and_with_their_labels(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split, config=toys.Config(labelled=8), epochs=1, epoch_images=24 * 8).train_epoch()
    batches = [step.from_labelled() for step in toys.steps_of()]
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert sorted(index[:32]) == sorted(split.labelled.index)
    assert sorted(index[32:]) == sorted(split.labelled.index)
    assert np.array_equal(torch.cat([batch.labels() for batch in batches]).numpy(), split.labelled.data.label[index])


def test_fewer_labels_than_the_batch_wrap_around(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split, config=toys.Config(labelled=40), epochs=1, epoch_images=56).train_epoch()
    index = toys.steps_of()[0].from_labelled().index.numpy()
    counts = np.unique(index, return_counts=True)[1]
    assert len(counts) == 32
    assert counts.max() == 2


def test_labels_never_reach_the_pool(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split).train_epoch()
    assert all(step.from_pool().label is None for step in toys.steps_of())
    assert all(step.labelled is None and step.episodes is None for step in toys.steps_of())


def test_images_are_the_datas_own(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split).train_epoch()
    batch = toys.steps_of()[3].from_pool()
    assert torch.equal(batch.images, split.train.images.take(batch.index))
    assert batch.images.dtype == torch.uint8
    assert batch.group is not None
    assert torch.equal(batch.group, torch.from_numpy(split.train.group)[batch.index])


def test_episodes_hold_distinct_images_of_their_classes(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split, config=toys.Config(tasks=2), epochs=1).train_epoch()
    known = {image.numpy().tobytes(): k for k, image in enumerate(split.train.images.take(torch.arange(64)))}
    for step in toys.steps_of():
        episodes = step.from_episodes()
        assert episodes.support_label.tolist() == [[0, 1]] * 2
        assert episodes.query_label.tolist() == [[0, 0, 1, 1]] * 2
        for support, query in zip(episodes.support, episodes.query, strict=True):
            rows = [known[image.numpy().tobytes()] for image in torch.cat([support, query])]
            assert len(set(rows)) == 6
            label = split.train.label[rows]
            assert (label >= 0).all()
            assert label[0] != label[1]
            assert label.tolist() == [label[0], label[1], label[0], label[0], label[1], label[1]]


def test_draws_are_new_in_each_step(toys: SimpleNamespace, split: Split) -> None:
    toys.start(split).train_epoch()
    first, second = (step.from_pool().stream.fork("again").normal(3) for step in toys.steps_of()[:2])
    assert not torch.equal(first, second)


def test_two_workers_are_shown_halves_of_one_workers_batch(toys: SimpleNamespace, split: Split) -> None:
    config = toys.Config(labelled=8, tasks=2)
    trainings = [toys.start(split, config=config, world=World(rank, size)) for rank, size in ((0, 1), (0, 2), (1, 2))]
    whole, left, right = (training.step_at(5, 0.5) for training in trainings)
    for part in ("pool", "labelled"):
        one, two = getattr(left, part), getattr(right, part)
        assert torch.equal(getattr(whole, part).index, torch.cat([one.index, two.index]))
        halves = torch.cat([one.stream.fork("x").normal(2), two.stream.fork("x").normal(2)])
        assert torch.equal(getattr(whole, part).stream.fork("x").normal(2), halves)
    assert torch.equal(whole.from_episodes().support, torch.cat([left.from_episodes().support, right.from_episodes().support]))
