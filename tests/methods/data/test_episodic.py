"""Few-shot splits, and episodes: learn2learn's own, without state, gathered in one step."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.batch import EpisodeShape, seed_of
from methods.data.episodic import EpisodeSampler, duplicates, rotated, split_few_shot, task_set
from methods.data.records import ArrayImages, ImageSet, Source
from methods.data.sources import load
from search_spaces.domains import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real zips are not in {SHARED}")


def made(classes: int = 10, per_class: int = 6, groups: int = 0, seed: int = 0, prefix: str = "c") -> ImageSet:
    """Random images; class k lies in group k mod ``groups``."""
    label = np.repeat(np.arange(classes), per_class).astype(np.int64)
    array = np.random.default_rng(seed).integers(0, 256, (len(label), 6, 6, 1)).astype(np.uint8)
    return ImageSet(
        ArrayImages(array),
        label,
        tuple(f"{prefix}{k}" for k in range(classes)),
        group=label % groups if groups else None,
        groups=tuple(f"g{g}" for g in range(groups)),
    )


def test_classes_are_held_out_and_numbered_anew() -> None:
    part = split_few_shot(Source(made()), seed=3)
    names = [set(p.data.classes) for p in (part.labelled, part.validation, part.test)]
    assert [len(n) for n in names] == [6, 2, 2]
    assert len(set.union(*names)) == 10
    for p in (part.labelled, part.validation, part.test):
        assert np.unique(p.label).tolist() == list(range(len(p.data.classes)))
    assert part.train.classes == 6
    assert len(part.train) == 36
    assert (part.train.label == part.labelled.label).all()
    assert part.holdout
    assert split_few_shot(Source(made()), seed=3).test.data.classes == part.test.data.classes
    assert len({split_few_shot(Source(made()), seed=s).test.data.classes for s in range(8)}) > 1


def test_groups_are_held_out_whole() -> None:
    part = split_few_shot(Source(made(groups=5)), seed=0)
    groups = [set(p.data.groups) for p in (part.labelled, part.validation, part.test)]
    assert [len(g) for g in groups] == [3, 1, 1]
    assert len(set.union(*groups)) == 5
    named = split_few_shot(Source(made(groups=5)), test_groups=["g1", "g3"])
    assert named.test.data.groups == ("g1", "g3")
    assert set(named.test.data.classes) == {"c1", "c3", "c6", "c8"}
    by_class = split_few_shot(Source(made(groups=5)), by="class")
    assert len(by_class.test.data.classes) == 2


def test_a_test_source_of_its_own() -> None:
    part = split_few_shot(Source(made()), test=made(seed=1, prefix="t", groups=2), test_groups=["g1"])
    assert not part.holdout
    assert part.test.data.classes == ("t1", "t3", "t5", "t7", "t9")
    assert len(part.labelled.data.classes) == 8
    # A test part with the training classes is more of the same data.
    whole = split_few_shot(Source(made(), made(seed=1)))
    assert whole.holdout
    assert len(whole.train) + len(whole.validation) + len(whole.test) == 120


def test_unlabelled_images_join_the_pool_only_where_they_cannot_show_held_out_classes() -> None:
    data = made()
    label = data.label.copy()
    label[::6] = -1
    data = ImageSet(data.images, label, data.classes)
    apart = split_few_shot(Source(data), test=made(seed=1, prefix="t"))
    assert len(apart.train) == 50
    assert (apart.train.label < 0).sum() == 10
    assert (split_few_shot(Source(data)).train.label >= 0).all()


def test_shared_images_and_shared_classes_are_refused() -> None:
    train = made()
    copied = made(classes=3, seed=5, prefix="t")
    assert isinstance(train.images, ArrayImages)
    assert isinstance(copied.images, ArrayImages)
    copied.images.array[4:7] = train.images.array[10:13]
    assert duplicates(train, copied).tolist() == [4, 5, 6]
    with pytest.raises(UserError, match=r"3 of 18 test images .*2 in t0, 1 in t1"):
        split_few_shot(Source(train), test=copied)
    with pytest.raises(UserError, match=r"10 are training classes too, first c0"):
        split_few_shot(Source(train), test=made(seed=1))


def test_rotations_are_new_classes() -> None:
    data = made(classes=3, groups=3)
    turned = rotated(data)
    assert len(turned) == 4 * len(data)
    assert len(turned.classes) == 12
    index = torch.tensor([2, 2 + 18, 2 + 36, 2 + 54])
    images = turned.images.take(index)
    for turn in range(4):
        assert torch.equal(images[turn], images[0].rot90(turn, dims=(1, 2)))
        assert turned.label[index[turn]] == data.label[2] + 3 * turn
    assert not torch.equal(images[0], images[2])
    part = split_few_shot(Source(made()), rotations=True)
    assert part.train.classes == 24
    assert len(part.validation.data.classes) == 2
    wide = ImageSet(ArrayImages(np.zeros((60, 4, 6, 1), np.uint8)), made().label, made().classes)
    with pytest.raises(UserError, match="square"):
        split_few_shot(Source(wide), rotations=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": Source(made(classes=2))}, "at least 3 classes"),
        ({"test_groups": ["g"]}, "groups"),
        ({"source": Source(made(groups=3)), "test_groups": ["g5"]}, "did you mean g"),
        ({"source": Source(made(groups=3)), "test_groups": ["g0", "g1", "g2"]}, "at least 2"),
        ({"by": "alphabet"}, "class or group"),
        ({"by": "group"}, "data with groups"),
        ({"test_share": 1.0}, "test_share"),
        ({"validation_share": 0}, "validation_share"),
        ({"test": ImageSet(ArrayImages(np.zeros((2, 5, 5, 1), np.uint8)), np.array([0, 1]), ("x", "y"))}, "6x6"),
        ({"test": made(classes=1, prefix="t")}, "at least 2 classes to test"),
    ],
)
def test_what_cannot_be_divided(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        split_few_shot(**{"source": Source(made()), **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# episodes


def test_episodes_are_class_by_class_and_without_overlap() -> None:
    data = made(classes=8, per_class=7)
    shape = EpisodeShape(tasks=5, ways=4, shots=2, queries=3)
    sampler = EpisodeSampler(data.label, None, shape, seed=1)
    support, query = sampler.indices(7)
    assert support.shape == (5, 8)
    assert query.shape == (5, 12)
    labels_s, labels_q = sampler.labels()
    for s, q, ls, lq in zip(support, query, labels_s, labels_q, strict=True):
        of = {int(k): int(c) for k, c in zip(ls, data.label[s.numpy()], strict=True)}
        assert len(set(of.values())) == 4
        assert [of[int(k)] for k in ls] == data.label[s.numpy()].tolist()
        assert [of[int(k)] for k in lq] == data.label[q.numpy()].tolist()
        assert len({*s.tolist(), *q.tolist()}) == 20


def test_episodes_are_a_function_of_seed_step_and_task_and_leave_random_alone() -> None:
    data = made()
    shape = EpisodeShape(tasks=6, ways=3, shots=1, queries=2)
    sampler, twin = (EpisodeSampler(data.label, None, shape, seed=4) for _ in range(2))
    before = random.getstate()
    whole = sampler.indices(3)
    assert random.getstate() == before
    sampler.indices(9)
    for rows in (slice(0, 2), slice(2, 6)):  # two workers
        for mine, all_ in zip(twin.indices(3, rows), whole, strict=True):
            assert torch.equal(mine, all_[rows])
    assert not torch.equal(whole[0], sampler.indices(4)[0])
    assert not torch.equal(whole[0], EpisodeSampler(data.label, None, shape, seed=5).indices(3)[0])


def test_the_tasks_are_those_of_learn2learn() -> None:
    import learn2learn.data as l2l

    data = made(classes=9, per_class=8)
    positions = torch.arange(len(data))
    plain = l2l.MetaDataset(torch.utils.data.TensorDataset(positions, torch.from_numpy(data.label)))
    steps = [l2l.transforms.NWays(plain, 4), l2l.transforms.KShots(plain, 5), l2l.transforms.LoadData(plain)]
    theirs = l2l.TaskDataset(plain, steps)
    sampler = EpisodeSampler(data.label, None, EpisodeShape(tasks=3, ways=4, shots=2, queries=3), seed=11)
    support, query = sampler.indices(2)
    for task in range(3):
        random.seed(seed_of(11, "episode", 2, task))
        index, _ = theirs[0]
        index = index.view(4, 5)
        assert torch.equal(support[task], index[:, :2].flatten())
        assert torch.equal(query[task], index[:, 2:].flatten())


def test_hidden_labels_take_no_part() -> None:
    data = made()
    label = data.label.copy()
    label[label >= 5] = -1
    sampler = EpisodeSampler(label, None, EpisodeShape(tasks=20, ways=5, shots=1, queries=1), seed=0)
    support, query = sampler.indices(0)
    assert (label[support.numpy()] >= 0).all()
    assert (label[query.numpy()] >= 0).all()


def test_within_groups() -> None:
    data = made(classes=10, groups=3)  # groups of 4, 3 and 3 classes
    assert data.group is not None
    three = EpisodeSampler(data.label, data.group, EpisodeShape(30, 3, 1, 1, within_group=True), seed=0)
    support, query = three.indices(0)
    groups = data.group[torch.cat([support, query], dim=1).numpy()]
    assert (groups == groups[:, :1]).all()
    assert set(groups[:, 0]) == {0, 1, 2}
    four = EpisodeSampler(data.label, data.group, EpisodeShape(10, 4, 1, 1, within_group=True), seed=0)
    assert set(data.group[four.indices(0)[0].numpy()].flatten()) == {0}
    with pytest.raises(UserError, match="at most 4"):
        EpisodeSampler(data.label, data.group, EpisodeShape(1, 5, 1, 1, within_group=True), seed=0)
    with pytest.raises(UserError, match="data with groups"):
        EpisodeSampler(data.label, None, EpisodeShape(1, 5, 1, 1, within_group=True), seed=0)


def test_within_groups_each_group_must_hold_enough_of_a_class() -> None:
    """Classes that lie in several groups (domains): ten images of each class, but in group 1 three of class 0 alone."""
    label = np.array([0] * 10 + [1] * 10 + [2] * 10)
    group = np.array([0] * 7 + [1] * 3 + [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5)
    sampler = EpisodeSampler(label, group, EpisodeShape(60, 2, 1, 3, within_group=True), seed=0)
    drawn = torch.cat(sampler.indices(0), dim=1).numpy()
    assert not ((label[drawn] == 0) & (group[drawn] == 1)).any()
    assert set(group[drawn].flatten()) == {0, 1}
    with pytest.raises(UserError, match="a group of 3 classes, got at most 2"):
        EpisodeSampler(label[5:], group[5:], EpisodeShape(1, 3, 1, 3, within_group=True), seed=0)


def test_small_classes_are_left_out_and_too_few_are_refused() -> None:
    label = np.array([0] * 5 + [1] * 2 + [2] * 5 + [3] * 5)
    sampler = EpisodeSampler(label, None, EpisodeShape(50, 2, 1, 3), seed=0)
    assert sampler.left_out == (1,)
    assert 1 not in label[torch.cat(sampler.indices(0), dim=1).numpy()]
    with pytest.raises(UserError, match=r"4-way .* 4 classes of at least 4 images .*got 3"):
        EpisodeSampler(label, None, EpisodeShape(1, 4, 1, 3), seed=0)
    with pytest.raises(UserError, match="got 0"):
        EpisodeSampler(np.full(5, -1), None, EpisodeShape(1, 2, 1, 1), seed=0)


def test_a_task_set_loads_images_in_one_step() -> None:
    data = made()
    calls: list[int] = []

    def take(index: torch.Tensor) -> torch.Tensor:
        calls.append(len(index))
        return data.images.take(index)

    positions = np.flatnonzero(data.label > 2)
    tasks = task_set(positions, data.label[positions], ways=3, images=4, load=take)
    assert tasks.sample().shape == (12, 1, 6, 6)
    assert calls == [12]


@pytest.mark.slow
def test_drawing_and_gathering_is_far_faster_than_loading_one_by_one() -> None:
    import learn2learn.data as l2l

    label = np.repeat(np.arange(60), 20)
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (len(label), 28, 28, 1)).astype(np.uint8))
    floats = images.take(torch.arange(len(label))).contiguous().float()
    plain = l2l.MetaDataset(torch.utils.data.TensorDataset(floats, torch.from_numpy(label)))
    t = l2l.transforms
    theirs = l2l.TaskDataset(plain, [t.NWays(plain, 20), t.KShots(plain, 20), t.LoadData(plain), t.RemapLabels(plain)])
    sampler = EpisodeSampler(label, None, EpisodeShape(1, 20, 1, 19), seed=0)

    def ours(step: int) -> torch.Tensor:
        return images.take(torch.cat(sampler.indices(step), dim=1).flatten())

    def seconds(draw: Callable[[int], object], n: int) -> float:
        start = time.process_time()
        for step in range(n):
            draw(step)
        return (time.process_time() - start) / n

    seconds(ours, 5)
    # Best of three of each; half of what is measured on an idle machine, so that a busy one does not decide.
    one_by_one = min(seconds(lambda _: theirs.sample(), 5) for _ in range(3))
    together = min(seconds(ours, 50) for _ in range(3))
    assert one_by_one > 8 * together


@needs_shared
def test_omniglot_refuses_the_alphabets_that_both_parts_hold() -> None:
    first = load(SHARED / "omniglot-background-small1.zip", size=28)
    second = load(SHARED / "omniglot-background-small2.zip", size=28)
    with pytest.raises(UserError, match=r"1000 of 3120 .*480 in Greek, 520 in Latin"):
        split_few_shot(first, test=second)
    part = split_few_shot(first, test=second, test_groups=["Japanese_(katakana)", "Sanskrit", "Tagalog"])
    assert len(part.test) == 2120
    assert part.test.data.groups == ("Japanese_(katakana)", "Sanskrit", "Tagalog")
    assert len(part.validation.data.groups) == 1
    assert part.train.classes + len(part.validation.data.classes) == 136
    assert not part.holdout
    sampler = EpisodeSampler(part.test.label, part.test.data.group, EpisodeShape(4, 20, 1, 1, within_group=True), seed=0)
    assert sampler.indices(0)[0].shape == (4, 20)


# Cross-validation, and no test.


def test_every_group_validates_in_turn_and_training_never_sees_it() -> None:
    """Four groups: three hold an episode of three ways, the fourth only trains."""
    data = made(classes=11, groups=4)  # groups of 3, 3, 3 and 2 classes
    part = split_few_shot(Source(data), test="none", cross_validate=EpisodeShape(1, 3, 1, 5))
    assert part.test is None
    assert not part.holdout
    assert part.train.classes == 11
    assert (len(part.labelled), len(part.validation)) == (66, 54)
    assert part.divisions() == part.folds
    assert [fold.validation.data.groups for fold in part.folds] == [("g0",), ("g1",), ("g2",)]
    for fold in part.folds:
        held, shown = fold.validation.data, fold.labelled.data
        assert set(held.groups) | set(shown.groups) == {"g0", "g1", "g2", "g3"}
        assert not set(held.groups) & set(shown.groups)
        assert not set(held.classes) & set(shown.classes)
        assert fold.train.classes == len(shown.classes) == 11 - len(held.classes)
        seen = fold.train.images.take(torch.arange(len(fold.train)))
        asked = held.images.take(torch.from_numpy(fold.validation.index))
        assert not {image.numpy().tobytes() for image in seen} & {image.numpy().tobytes() for image in asked}
        assert (fold.train.label >= 0).all()
    assert not split_few_shot(Source(data)).folds


@pytest.mark.parametrize(
    "options", [{}, {"by": "group"}, {"test_groups": ["g1"]}, {"test": "none", "cross_validate": EpisodeShape(1, 3, 1, 1)}]
)
def test_a_class_in_several_groups_is_not_held_out_with_one(options: dict[str, object]) -> None:
    """Groups that are domains: every class lies in all of them, so a held-out group's classes would be seen in training."""
    data = made(groups=3)
    domains = dataclasses.replace(data, group=np.arange(len(data)) % 3)
    with pytest.raises(UserError, match=r"10 lie in others or in none too, first c0; hold out by class") as caught:
        split_few_shot(Source(domains), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    part = split_few_shot(Source(domains), by="class")
    assert not set(part.labelled.data.classes) & set(part.validation.data.classes)


def test_the_fewest_images_are_those_of_the_smallest_turn() -> None:
    data = made(classes=11, groups=4)
    part = split_few_shot(Source(data), test="none", cross_validate=EpisodeShape(1, 3, 1, 5))
    assert (len(part.train), part.fewest_images()) == (66, 48)
    plain = split_few_shot(Source(data))
    assert plain.fewest_images() == len(plain.train)


def test_turns_beside_a_test_set_leave_the_test_as_it_is() -> None:
    tested = made(seed=1, prefix="t", groups=2)
    source = Source(made(classes=9, groups=3))
    plain = split_few_shot(source, test=tested)
    turned = split_few_shot(source, test=tested, cross_validate=EpisodeShape(1, 3, 1, 1), rotations=True)
    assert plain.test is not None
    assert turned.test is not None
    assert turned.test.data.classes == plain.test.data.classes
    assert (turned.train.classes, turned.folds[0].train.classes) == (36, 24)
    held_out = split_few_shot(source, test_groups=["g1"], cross_validate=EpisodeShape(1, 3, 1, 1))
    assert held_out.test is not None
    assert held_out.holdout
    assert [fold.validation.data.groups for fold in held_out.folds] == [("g0",), ("g2",)]
    assert held_out.labelled.data.groups == ("g0", "g2")


def test_without_a_test_nothing_is_held_out_for_one() -> None:
    part = split_few_shot(Source(made()), test="none")
    assert part.test is None
    assert len(part.labelled) + len(part.validation) == 60
    own = split_few_shot(Source(made(), made(seed=1, prefix="t")), test="none")
    assert not [name for name in own.labelled.data.classes if name.startswith("t")], "its own test classes stay unopened"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": Source(made())}, "needs data with groups"),
        ({"source": Source(made(groups=5))}, r"2 groups of 3 classes with 2 images \(1 shots and 1 queries\), got 0 of 5"),
        ({"source": Source(made(classes=4, groups=1))}, "got 1 of 1 groups"),
        ({"cross_validate": EpisodeShape(1, 2, 3, 4)}, "with 7 images"),
        ({"cross_validate": None, "test_groups": ["g0"]}, r"beside test: none"),
    ],
)
def test_what_cannot_be_cross_validated(options: dict[str, object], words: str) -> None:
    given = {"source": Source(made(classes=9, groups=3)), "test": "none", "cross_validate": EpisodeShape(1, 3, 1, 1), **options}
    with pytest.raises(UserError, match=words) as caught:
        split_few_shot(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
