"""Tasks: both pass the conformance check, which fails where a task breaks its contract; settings, judgements, facts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from methods.catalogue import CATALOGUE
from methods.data import budget
from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Source, Split
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.protocols import Knn, Trained, protocol
from methods.tasks import TASKS, UNITS, Classification, Facts, FewShotTask, Task, task
from methods.tasks.testing import check_task
from search_spaces.domains import UserError


def drawings(classes: int = 6, each: int = 12, groups: int = 0, unlabelled: int = 0, seed: int = 0, of: str = "c") -> Source:
    """Noisy patterns of 8 x 8, one a class; class k in group k mod ``groups``."""
    rng = np.random.default_rng(seed)
    shown = np.concatenate([np.repeat(np.arange(classes), each), rng.integers(0, classes, unlabelled)])
    label = np.where(np.arange(len(shown)) < classes * each, shown, -1).astype(np.int64)
    pattern = rng.uniform(0, 255, (classes, 8, 8, 1))
    pixels = (pattern[shown] + rng.normal(0, 40, (len(shown), 8, 8, 1))).clip(0, 255).astype(np.uint8)
    data = ImageSet(ArrayImages(pixels), label, tuple(f"{of}{k}" for k in range(classes)))
    if groups:
        data = dataclasses.replace(data, group=shown % groups, groups=tuple(f"g{g}" for g in range(groups)))
    return Source(data)


SMALL = {"ways": 2, "shots": 1, "queries": 3, "episodes": 12}


@pytest.mark.parametrize(
    ("asked", "source", "test"),
    [
        (Classification(), drawings(), None),
        (Classification(labels=24, validation=0.25), drawings(unlabelled=10), 0.3),
        (Classification(labels=24, imbalance=3), drawings(), drawings(each=4, seed=1)),
        (Classification(labels=24, mismatch=0.5), drawings(each=30), None),
        (FewShotTask(**SMALL), drawings(classes=10), None),
        (FewShotTask(**SMALL, hold_out="class", validation=0.4), drawings(classes=10, groups=5), 0.3),
        (FewShotTask(**SMALL, rotations=True), drawings(classes=10), drawings(seed=1, of="t")),
        (FewShotTask(**SMALL, cross_validate=True), drawings(classes=9, groups=3), "none"),
        (FewShotTask(**SMALL, cross_validate=True, test_groups=("g1",)), drawings(classes=9, groups=3), None),
    ],
)
def test_tasks_keep_the_contract(asked: Task, source: Source, test: Any) -> None:
    check_task(asked, source, test, seed=3)


def shown_too_much(split: Split) -> Split:
    label = split.train.label.copy()
    label[split.validation.index[0]] = split.validation.label[0]
    return dataclasses.replace(split, train=dataclasses.replace(split.train, label=label))


def both_sides(split: Split) -> Split:
    return dataclasses.replace(split, validation=split.labelled)


def asks_the_pool(split: Split) -> Split:
    first = LabelledSubset(split.labelled.data, split.validation.index[:1], split.validation.label[:1])
    return dataclasses.replace(split, test=first)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (shown_too_much, "labels of the training part, and no other"),
        (both_sides, "both trains and validates"),
        (asks_the_pool, "a test image is in another part"),
    ],
)
def test_a_broken_task_is_found_out(monkeypatch: pytest.MonkeyPatch, spoilt: Any, words: str) -> None:
    whole = budget.split
    monkeypatch.setattr(budget, "split", lambda *args, **kwargs: spoilt(whole(*args, **kwargs)))
    with pytest.raises(AssertionError, match=words):
        check_task(Classification(), drawings())


def test_an_unseeded_task_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seeds = budget.split, iter(range(9))
    monkeypatch.setattr(budget, "split", lambda *args, **kwargs: whole(*args, **{**kwargs, "seed": next(seeds)}))
    with pytest.raises(AssertionError, match="same seed"):
        check_task(Classification(), drawings())


@dataclass(frozen=True)
class HalfAndHalf(Task):
    """A user's own: every second image validates, and nothing is tested."""

    name: ClassVar[str] = "half_and_half"
    offset: int = 0

    def divide(self, source: Source, test: Any, protocol: Any, seed: int) -> Split:
        data = source.train
        index = np.arange(len(data))
        train, held = index[index % 2 == self.offset], index[index % 2 != self.offset]
        label = np.where(index % 2 == self.offset, data.label, -1)
        parts = (LabelledSubset(data, rows, data.label[rows]) for rows in (train, held))
        return Split(budget.train_data(data, label), *parts, None, False)

    def facts(self, split: Split) -> Facts:
        return Facts("halves", UNITS, dict.fromkeys(UNITS, "images"), "", "", "No test.", "Half.", "", "", "")


def test_a_task_of_ones_own_needs_one_file() -> None:
    check_task(HalfAndHalf(offset=1), drawings())
    with pytest.raises(UserError, match=r"^half_and_half.offset: input should be a valid integer, got 'x'$"):
        HalfAndHalf(offset="x")  # type: ignore[arg-type]


def test_tasks_by_name() -> None:
    assert list(TASKS) == ["classification", "few_shot"]
    assert task("few_shot", ways=3, test_groups=["g1"]) == FewShotTask(ways=3, test_groups=("g1",))
    assert task("classification") == Classification()
    for name, settings, words in (
        ("fewshot", {}, "fewshot is not a task; did you mean few_shot?"),
        ("few_shot", {"way": 3}, "few_shot.way is not a setting; did you mean ways?"),
        ("few_shot", {"ways": 1}, "few_shot.ways: input should be greater than or equal to 2, got 1"),
        ("few_shot", {"ways": "3"}, "few_shot.ways: input should be a valid integer, got '3'"),
        ("few_shot", {"validation": 1.0}, "few_shot.validation: input should be less than 1, got 1.0"),
        ("few_shot", {"hold_out": "alphabet"}, "few_shot.hold_out: input should be 'class' or 'group', got 'alphabet'"),
        ("classification", {"keep_groups": 1}, "classification.keep_groups: input should be a valid boolean, got 1"),
        (
            "classification",
            {"labels": "some"},
            "classification.labels: input should be a valid integer or input should be 'all'",
        ),
    ):
        with pytest.raises(UserError) as caught:
            task(name, **settings)
        assert words in str(caught.value)


def test_the_few_shot_task_shapes_its_protocol() -> None:
    own = FewShotTask(ways=3, shots=2, queries=4, episodes=50, within_group=True)
    for given in (None, "few_shot"):
        assert own.protocol(given) == protocol("few_shot", ways=3, shots=2, queries=4, episodes=50, within_group=True)
    assert own.protocol({"few_shot": {"ways": 4, "distance": "euclidean"}}) == protocol(
        "few_shot", ways=4, shots=2, queries=4, episodes=50, within_group=True, distance="euclidean"
    )
    assert Classification().protocol() == protocol("predict")
    assert Classification().protocol({"knn": None}) == protocol("knn")
    with pytest.raises(UserError, match="protocol must be a name or one name with its settings"):
        own.protocol({"knn": {}, "linear": {}})
    with pytest.raises(UserError, match="protocol knn takes settings as a mapping, got 3"):
        own.protocol({"knn": 3})


@pytest.mark.parametrize(
    ("asked", "given", "test", "words"),
    [
        (Classification(), "predict", "none", "test: none is for task: few_shot, got classification; leave test out"),
        (Classification(labels=3), "predict", None, "labels must be all or a whole number from 4"),
        (Classification(), "predict", 1.5, "a test share must lie between 0 and 1, got 1.5"),
        (Classification(labels=9, mismatch=0.5, keep_groups=True), "predict", None, "got 0.5 beside keep_groups"),
        (FewShotTask(), "few_shot", 1.5, "a test share must lie between 0 and 1, got 1.5"),
        (FewShotTask(), "knn", None, "which protocol few_shot scores, got knn; leave protocol out"),
        (FewShotTask(cross_validate=True, hold_out="class"), "few_shot", None, "got hold_out: class; leave one of them out"),
    ],
)
def test_what_can_be_said_before_the_data_is_there(asked: Task, given: str, test: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        asked.check(asked.protocol(given), test)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "refit", "seeds", "join", "words"),
    [
        (Classification(), True, None, True, "selection.join is for task: few_shot, got classification"),
        (
            Classification(),
            False,
            3,
            False,
            "selection.refit_seeds is for finalists that are trained on the whole budget, got 3",
        ),
        (Classification(), True, 3, False, ""),
        (FewShotTask(), True, 3, False, "selection.refit_seeds is for finalists"),
        (FewShotTask(), False, None, True, ""),
        (FewShotTask(cross_validate=True), True, 3, True, ""),
        (FewShotTask(cross_validate=True), False, None, False, "needs selection.refit: true, since every fold's model lacks"),
    ],
)
def test_selections_that_a_task_allows(asked: Task, refit: bool, seeds: int | None, join: bool, words: str) -> None:
    if not words:
        asked.check_selection(refit, seeds, join)
        return
    with pytest.raises(UserError) as caught:
        asked.check_selection(refit, seeds, join)
    assert words in str(caught.value)


def model(split: Split, uses_labels: bool) -> Trained:
    torch.manual_seed(0)
    return Trained(
        build_encoder(EncoderSpec("conv4"), split.train.images.shape, split.train.mean, split.train.std),
        uses_labels=uses_labels,
    )


def test_trained_and_frozen_answer_for_the_same_images() -> None:
    """After the same labels, and in one order, so that they pair."""
    own = Classification(labels=36)
    knn = Knn()
    split = own.divide(drawings(), None, knn, 0)
    taught, frozen = (own.judge(knn, [model(split, uses)], split, 0) for uses in (True, False))
    assert (taught.scored_on, taught.score.n) == ("validation", len(split.validation))
    assert (frozen.scored_on, frozen.score.n) == (taught.scored_on, taught.score.n)
    assert taught.units is not None
    assert frozen.units is not None
    assert len(taught.units) == len(frozen.units) == len(split.validation)
    order = np.argsort(split.validation.index)
    asked = knn.score(model(split, True), split.labelled, split.validation, 0)
    assert asked.correct is not None
    assert (taught.units == asked.correct[order]).all()


def test_folds_are_judged_together_by_their_own_models() -> None:
    own = FewShotTask(**SMALL, cross_validate=True)
    scoring = own.protocol()
    split = own.divide(drawings(classes=9, groups=3), "none", scoring, 0)
    parts = own.divisions(split)
    assert len(parts) == 3
    models = [model(part, False) for part in parts]
    judged = own.judge(scoring, models, split, 0)
    alone = [scoring.score(m, p.labelled, p.validation, 0).value for m, p in zip(models, parts, strict=True)]
    assert judged.scored_on == "folds"
    assert judged.score.value == pytest.approx(np.mean(alone))
    assert judged.units is not None
    assert judged.units.shape == (36,)
    with pytest.raises(ValueError, match="zip"):
        own.judge(scoring, models[:2], split, 0)


def test_what_a_refit_sees_and_who_is_refitted() -> None:
    own = Classification(labels=36)
    split = own.divide(drawings(), None, own.protocol(), 0)
    final = own.final_data(split)
    assert set(np.flatnonzero(final.label >= 0)) == {*split.labelled.index, *split.validation.index}
    held = own.truth(split, split.train)
    assert held is not None
    assert set(np.flatnonzero(held >= 0)) == set(split.validation.index)
    assert own.truth(split, final) is None
    assert own.refits(split, CATALOGUE["supervised"])
    assert not own.refits(split, CATALOGUE["simclr"])
    assert own.probe_labels(split, model(split, True), False) is split.labelled
    assert len(own.probe_labels(split, model(split, True), True)) == 36
    assert len(own.probe_labels(split, model(split, False), False)) == 36
    assert own.share_of_refit(split) == 1
    few = FewShotTask(**SMALL)
    part = few.divide(drawings(classes=10), None, few.protocol(), 0)
    assert few.final_data(part) is part.train
    assert few.truth(part, part.train) is None
    assert not few.refits(part, CATALOGUE["supervised"])
    assert few.share_of_refit(part) == 0
    turns = dataclasses.replace(few, cross_validate=True)
    folds = turns.divide(drawings(classes=9, groups=3), "none", turns.protocol(), 0)
    assert turns.refits(folds, CATALOGUE["simclr"])
    assert turns.share_of_refit(folds) == pytest.approx(1 / 3)


def test_the_exported_classifier() -> None:
    own = Classification(labels=36)
    split = own.divide(drawings(), None, own.protocol(), 0)
    probe = own.classifier(model(split, False), split, 0)
    assert probe is not None
    assert probe(split.train.images.take(torch.arange(2))).shape == (2, 6)
    has = torch.nn.Identity()
    assert own.classifier(dataclasses.replace(model(split, True), predictor=has), split, 0) is has
    assert FewShotTask().classifier(dataclasses.replace(model(split, True), predictor=has), split, 0) is None


def test_the_dry_run_and_the_verdict_are_told_the_division() -> None:
    own = Classification(labels=36, imbalance=3)
    split = own.divide(drawings(each=20), None, own.protocol(), 0)
    said = own.describe(split)
    assert said.startswith(
        "data: 96 training images of 1x8x8, 18 labels to train on, 18 to validate, 24 test images (held out)"
    )
    assert "; labels imbalanced, " in said
    facts = own.facts(split)
    assert facts.taken == "held out from your data"
    assert facts.luck == "The spread over seeds does not include the luck of which images were labelled."
    assert (facts.units["validation"], facts.asked["episodes"], facts.folds) == ("validation images", "episodes", "")
    few = FewShotTask(**SMALL, cross_validate=True)
    part = few.divide(drawings(classes=9, groups=3), "none", few.protocol(), 0)
    assert "27 to validate (3 groups in turn), no test images" not in few.describe(part)
    assert "108 to validate (3 groups in turn), no test images" in few.describe(part)
    facts = few.facts(part)
    assert facts.folds == ", each the mean over 3 groups left out in turn"
    assert facts.setting == "2-way 1-shot on classes that training never saw, 3 groups left out in turn"
    assert facts.no_test.startswith("No test was made (test: none).")
    assert (facts.luck, facts.left_out, facts.units["folds"]) == ("", "", "episodes")
    held = FewShotTask(**SMALL)
    facts = held.facts(held.divide(drawings(classes=10), None, held.protocol(), 0))
    assert facts.luck.endswith("the luck of which classes validated and which classes were held out.")


def test_classes_too_small_for_the_episodes_are_named_and_parts_without_episodes_refused() -> None:
    source = drawings(classes=10)
    few = FewShotTask(**SMALL, hold_out="class", validation=0.5)
    part = few.divide(source, None, few.protocol(), 1)
    assert part.left_out == ()
    name = part.validation.data.classes[0]
    k = source.train.classes.index(name)
    rows = np.flatnonzero(source.train.label == k)
    label = source.train.label.copy()
    label[rows[3:]] = -1
    cut = few.divide(Source(dataclasses.replace(source.train, label=label)), None, few.protocol(), 1)
    assert cut.left_out == (name,)
    assert f"left out: {name} have too few images for the episodes" in few.describe(cut)
    assert few.facts(cut).left_out == f"1 class(es) have too few images for the episodes and were not asked, first {name}."
    wide = dataclasses.replace(few, ways=5)
    with pytest.raises(UserError, match=r"^validation: 5-way episodes need 5 classes"):
        wide.divide(source, None, wide.protocol(), 1)
