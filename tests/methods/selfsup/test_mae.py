"""MAE: what is hidden, what is encoded, and what the loss looks at."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.batch import Batch, RandomStream, Step
from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.parts.vit import patches
from methods.selfsup import mae
from methods.training import Training

Make = Callable[..., Training]


@pytest.fixture
def learner(train: Make, make_data: Callable[..., TrainData]) -> mae.MAE:
    found = train(mae.METHOD, make_data(), "vit_tiny").learner
    assert isinstance(found, mae.MAE)
    return found


def draws(n: int) -> RandomStream:
    return RandomStream(1, n, slice(0, n), torch.device("cpu"))


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.5, 32), (0.0, 63), (0.99, 1)])
def test_hide_keeps_the_asked_share(ratio: float, visible: int) -> None:
    kept, restore = mae.random_masking(draws(5), 64, ratio)
    assert kept.shape == (5, visible)
    for row, places in zip(kept.tolist(), restore.tolist(), strict=True):
        assert sorted(places) == list(range(64))
        assert [p for p in range(64) if places[p] < visible] == sorted(row)
        assert [places[p] for p in row] == list(range(visible))


def test_every_patch_is_hidden_equally_often() -> None:
    _, restore = mae.random_masking(draws(4000), 16, 0.75)
    rate = (restore >= 4).float().mean(0)
    assert (rate - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


def test_normalised_targets_are_the_formula() -> None:
    images = torch.rand(2, 3, 8, 8)
    wanted = mae.targets(images, 4, True)
    x = patches(images, 4)
    for b in range(2):
        for n in range(4):
            values = [float(v) for v in x[b, n]]
            mean = sum(values) / 48
            var = sum((v - mean) ** 2 for v in values) / 47
            for m in range(48):
                assert float(wanted[b, n, m]) == pytest.approx((values[m] - mean) / math.sqrt(var + 1e-6), abs=1e-4)


def test_only_visible_patches_are_encoded(learner: mae.MAE, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    encode = learner.backbone.encode
    monkeypatch.setattr(learner.backbone, "encode", lambda tokens: (seen.append(tokens), encode(tokens))[1])
    learner.reconstruct(torch.rand(4, 3, 16, 16), draws(4))
    assert seen[0].shape[1] == round(0.25 * 64)


def test_what_is_hidden_cannot_be_seen(learner: mae.MAE) -> None:
    images = torch.rand(2, 3, 16, 16)
    painted, hidden = learner.reconstruct(images, draws(2))
    side = learner.backbone.patch
    mask = hidden.view(2, 1, *learner.backbone.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    other = torch.where(mask, torch.rand_like(images), images)
    torch.testing.assert_close(learner.reconstruct(other, draws(2))[0], painted)
    assert not torch.allclose(learner.reconstruct(torch.where(mask, images, 1 - images), draws(2))[0], painted)


def test_loss_is_the_mean_squared_error_of_hidden_patches(
    learner: mae.MAE,
    make_data: Callable[..., TrainData],
    make_batch: Callable[..., Batch],
    make_step: Callable[..., Step],
) -> None:
    data = make_data()
    total = learner.loss(make_step(make_batch(data, [0, 1, 2]))).total
    batch = make_batch(data, [0, 1, 2])
    images = learner.augment(batch.images, batch.stream.fork("view"))
    with torch.no_grad():
        painted, hidden = learner.reconstruct(images, batch.stream.fork("mask"))
    wanted = mae.targets(images, learner.backbone.patch, True)
    errors = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(painted[i, n], wanted[i, n], strict=True)) / wanted.shape[2]
        for i in range(3)
        for n in range(64)
        if hidden[i, n]
    ]
    assert len(errors) == 3 * 48
    assert total.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_pictures_keep_the_visible_patches(
    learner: mae.MAE, make_data: Callable[..., TrainData], make_batch: Callable[..., Batch]
) -> None:
    data = make_data()
    with torch.no_grad():
        picture = learner.pictures(make_batch(data, [0, 1]))["original | masked | reconstruction"]
    original, masked, whole = picture.split(16, dim=3)
    torch.testing.assert_close(original, data.images.take(torch.tensor([0, 1])).float() / 255)
    visible = (masked == original).all(1)
    assert visible.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(whole.movedim(1, 3)[visible], original.movedim(1, 3)[visible])


def test_mae_needs_tokens(train: Make) -> None:
    with pytest.raises(TrainingError, match="mae needs an encoder with patch tokens, got resnet_small; set encoder: vit_tiny"):
        train(mae.METHOD)
