"""Rotation, jigsaw, relative patch, exemplar and CPC: the task is what the paper says, and its answer is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from methods.batch import Batch
from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.parts.patches import mosaic
from methods.selfsup import cpc, exemplar, jigsaw, pirl, relative_patch, rotation
from methods.training import Training
from methods.world import World

Make = Callable[..., Training]
Data = Callable[..., TrainData]
Batches = Callable[..., Batch]


def test_four_turns() -> None:
    images = torch.rand(3, 2, 5, 5)
    views, turns = rotation.four_turns(images)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for i, turn in enumerate(turns.tolist()):
        assert torch.equal(views[i], torch.rot90(images[i % 3], turn, (1, 2)))


@pytest.mark.parametrize("method", [jigsaw.METHOD, relative_patch.METHOD, cpc.METHOD, pirl.METHOD], ids=lambda m: m.name)
def test_statistics_of_patches_stay_out(train: Make, method: Any) -> None:
    training = train(method)
    layer = next(m for m in training.learner.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    sizes: list[tuple[int, bool]] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append((inputs[0].shape[-1], module.momentum != 0.0))

    layer.register_forward_pre_hook(note)
    training.one_step()
    whole = max(size for size, _ in sizes)
    assert {(size == whole, moved) for size, moved in sizes} == {(True, True), (False, False)}


def test_jigsaw_is_solved_by_the_permutation_it_names(train: Make, make_data: Data, make_batch: Batches) -> None:
    data = make_data(side=16)
    learner = train(jigsaw.METHOD, data, grid=2, permutations=24, patch=1.0, augmentation_strength=0.0).learner
    assert isinstance(learner, jigsaw.Jigsaw)
    index = list(range(12))
    batch = make_batch(data, index)
    patches, which = learner.puzzle(batch.images, batch.stream)
    solved = patches[torch.arange(12)[:, None], learner.permutations[which].argsort(dim=1)]
    torch.testing.assert_close(mosaic(solved), batch.images.float() / 255)
    assert len(set(which.tolist())) > 3


def test_relative_patches_lie_where_their_label_says(train: Make, make_data: Data, make_batch: Batches) -> None:
    data = make_data(side=32)
    learner = train(relative_patch.METHOD, data, augmentation_strength=0.0, jitter=0.0).learner
    assert isinstance(learner, relative_patch.RelativePatch)
    at = learner.layout
    assert (at.side, at.pitch, at.shift, at.block) == (8, 10, 0, 28)
    row = torch.arange(32, dtype=torch.uint8)
    places = torch.stack([row[:, None].expand(32, 32), row[None].expand(32, 32), row[None].expand(32, 32)])
    block = learner.block(places.expand(5, 3, 32, 32), make_batch(data, list(range(5))).stream) * 255
    corner = block[:, :, :2, 0, 0].round()  # B 9 2
    middle = corner[:, relative_patch.MIDDLE]
    for number, place in enumerate(relative_patch.NEIGHBOURS):
        step = torch.tensor([(place // 3 - 1) * 10.0, (place % 3 - 1) * 10.0])
        assert torch.equal(corner[:, place] - middle, step.expand(5, 2)), number


def test_relative_patch_block_always_fits() -> None:
    from methods.parts.encoders import EncoderSpec, build_encoder

    for side in (16, 28, 32, 64):
        encoder = build_encoder(EncoderSpec(), (3, side, side), (0.5,) * 3, (0.25,) * 3)
        for patch in (0.25, 0.3):
            for gap in (0.0, 0.5):
                config = relative_patch.Config(patch=patch, gap=gap, jitter=0.25)
                assert relative_patch.layout(config, (3, side, side), encoder).block <= side


@pytest.mark.parametrize(
    ("method", "values"),
    [(jigsaw.METHOD, {}), (relative_patch.METHOD, {}), (cpc.METHOD, {}), (pirl.METHOD, {})],
    ids=lambda v: getattr(v, "name", ""),
)
def test_images_too_small_for_patches_are_refused(train: Make, make_data: Data, method: Any, values: dict[str, Any]) -> None:
    small = {"pirl": 8, "cpc": 8}.get(method.name, 8)
    if method.name == "pirl":
        with pytest.raises(TrainingError, match="patches must be at least 4 pixels wide"):
            train(method, make_data(side=small), "resnet_small", **values)
        return
    with pytest.raises(TrainingError, match="patches must be at least 4 pixels wide, got"):
        train(method, make_data(side=small), **values)


def test_cpc_refuses_to_look_further_than_there_are_rows(train: Make, make_data: Data) -> None:
    with pytest.raises(TrainingError, match=r"cpc\.steps_ahead must be less than the rows of patches, 3, got 3"):
        train(cpc.METHOD, make_data(side=16), patch=0.5, steps_ahead=3)


def test_exemplars_are_classes_and_no_part_of_the_state(train: Make, make_data: Data) -> None:
    training = train(exemplar.METHOD, make_data(48), exemplars=10)
    learner = training.learner
    assert learner.chosen.shape == (10, 3, 16, 16)
    assert not any("chosen" in name for name in learner.state_dict())
    report = training.train_epoch()
    assert report.parts["loss"] > 0
    assert train(exemplar.METHOD, make_data(48), exemplars=4096).learner.chosen.shape[0] == 48


def test_context_of_a_row_does_not_see_the_rows_below() -> None:
    network = cpc.RowContext(5, width=8)
    z = torch.randn(2, 5, 4, 4)
    other = z.clone()
    other[:, :, 2:] = torch.randn(2, 5, 2, 4)
    before, after = network(z), network(other)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert (before[:, :, 2:] - after[:, :, 2:]).abs().max() > 1e-3
    changed = z.clone()
    changed[:, :, 0] += 1
    assert (network(changed)[:, :, 3] - before[:, :, 3]).abs().max() > 1e-4


def test_patch_nce_is_the_formula() -> None:
    prediction, z = torch.randn(2, 4, 3, dtype=torch.float64)
    noise = torch.randn(5, 3, dtype=torch.float64)
    place, noise_place = torch.tensor([7, 8, 9, 10]), torch.tensor([1, 8, 3, 8, 5])
    expected = 0.0
    for i in range(4):
        own = float(prediction[i] @ z[i])
        others = [float(prediction[i] @ noise[k]) for k in range(5) if noise_place[k] != place[i]]
        expected += -own + math.log(math.exp(own) + sum(math.exp(o) for o in others))
    loss, _ = cpc.patch_nce(prediction, z, place, noise, noise_place)
    assert float(loss) == pytest.approx(expected / 4, rel=1e-9)


def test_cpc_numbers_patches_across_workers() -> None:
    device = torch.device("cpu")
    whole = cpc.CPC.places(4, 3, 2, World(), device)
    halves = [cpc.CPC.places(2, 3, 2, World(rank, 2), device) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)
