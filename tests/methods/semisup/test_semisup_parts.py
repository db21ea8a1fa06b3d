"""Ramps, masks, alignment, partners, dropout, labelling of the pool, and the pair of encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.batch import RandomStream
from methods.data.records import ImageSet
from methods.parts.alignment import WINDOW, Alignment, class_shares
from methods.parts.dropout import dropout
from methods.parts.encoders import EncoderSpec, build_encoder
from methods.parts.heads import Classifier, load_predictor, save_predictor
from methods.parts.labelling import Frozen, label_pool
from methods.parts.masks import confident
from methods.parts.mixup import shuffled
from methods.parts.pair import PairEncoder
from methods.parts.ramps import linear_ramp, warmed_momentum
from methods.semisup import fixmatch, remixmatch, s4l, uda
from methods.world import World
from search_spaces.domains import UserError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scripted(World):
    """One of two workers whose gathered tensors are known beforehand, in the order in which they are asked for."""

    answers: tuple[Tensor, ...] = ()

    def gather(self, x: Tensor) -> Tensor:
        return next(answer for answer in self.answers if torch.equal(answer[self.rows(len(answer))], x))


def test_ramps_start_and_end_where_they_say() -> None:
    assert [linear_ramp(t, 0.5) for t in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert [linear_ramp(t, 0.4, start=0.2) for t in (0.1, 0.2, 0.4, 0.6)] == pytest.approx([0.0, 0.0, 0.5, 1.0])
    assert linear_ramp(0.0, 0.0) == 1.0


def test_warmed_momentum_gives_the_plain_average_until_its_memory_is_shorter() -> None:
    values, average = [3.0, -1.0, 4.0, 1.0, -5.0], 2.0
    for number, value in enumerate(values):
        m = warmed_momentum(0.99, number)
        average = m * average + (1 - m) * value
        assert average == pytest.approx((2.0 + sum(values[: number + 1])) / (number + 2))
    assert warmed_momentum(0.9, 1000) == 0.9


def test_confident_takes_the_best_class_from_the_threshold_on() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.95, 0.05]])
    label, mask = confident(p, 0.7)
    assert label.tolist() == [0, 2, 1]
    assert mask.tolist() == [0.0, 1.0, 1.0]


def test_alignment_divides_by_the_running_mean_of_the_last_steps() -> None:
    prior = torch.tensor([0.5, 0.3, 0.2])
    alignment = Alignment(prior)
    g = torch.Generator().manual_seed(0)
    past = [[1 / 3] * 3] * WINDOW
    for number in range(WINDOW + 5):
        q = torch.rand(6, 3, generator=g).softmax(1)
        aligned = alignment(q, number, World())
        mean = [sum(row[k] for row in past) / WINDOW for k in range(3)]
        past = [*past, q.double().mean(0).tolist()][-WINDOW:]
        for row, got in zip(q.tolist(), aligned.tolist(), strict=True):
            raw = [row[k] * prior[k].item() / mean[k] for k in range(3)]
            assert got == pytest.approx([value / sum(raw) for value in raw], rel=1e-4)


def test_alignment_gives_a_biased_model_the_labels_class_shares() -> None:
    prior = class_shares(torch.tensor([0, 1, 1, 1, -1, -1]), 2)
    assert prior.tolist() == [0.25, 0.75]
    alignment = Alignment(prior)
    q = torch.tensor([[0.9, 0.1]]).repeat(8, 1)
    for number in range(WINDOW):
        alignment(q, number, World())
    assert alignment(q, WINDOW, World()).mean(0).tolist() == pytest.approx([0.25, 0.75])


def test_alignment_does_not_make_labels_of_a_new_models_noise() -> None:
    """In the first steps a model that says one class for everything keeps saying it."""
    alignment = Alignment(torch.full((4,), 0.25))
    q = torch.tensor([[0.94, 0.03, 0.02, 0.01], [0.95, 0.01, 0.02, 0.02]])
    for number in range(3):
        assert alignment(q, number, World())[:, 0].min() > 0.9


def test_shuffled_is_the_permuted_concatenation_on_one_worker_and_its_rows_on_two() -> None:
    a, b = torch.arange(8.0).view(4, 2), torch.arange(100.0, 112.0).view(6, 2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    whole_a, whole_b = shuffled([a, b], [slice(0, 4), slice(0, 6)], order, World())
    assert torch.equal(torch.cat([whole_a, whole_b]), torch.cat([a, b])[order])
    for rank in (0, 1):
        world = Scripted(rank, 2, answers=(a, b))
        rows = [world.rows(4), world.rows(6)]
        part_a, part_b = shuffled([a[rows[0]], b[rows[1]]], rows, order, world)
        assert torch.equal(part_a, whole_a[rows[0]])
        assert torch.equal(part_b, whole_b[rows[1]])


def test_dropout_drops_the_share_and_keeps_the_mean_and_does_not_depend_on_the_workers() -> None:
    z = torch.ones(64, 50)
    one = dropout(z, 0.3, RandomStream(1, 64, slice(0, 64), CPU))
    assert (one == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert one.max().item() == pytest.approx(1 / 0.7)
    halves = [dropout(z[:32], 0.3, RandomStream(1, 64, slice(32 * r, 32 * r + 32), CPU)) for r in (0, 1)]
    assert torch.equal(torch.cat(halves), one)
    assert torch.equal(dropout(z, 0.0, RandomStream(1, 64, slice(0, 64), CPU)), z)


def _classifier(width: int = 1) -> Classifier:
    spec = EncoderSpec("resnet_small")
    return Classifier(build_encoder(spec, (3, 16, 16), (0.5,) * 3, (0.25,) * 3, width), 4)


def test_label_pool_predicts_every_image_in_evaluation_mode_and_leaves_the_model_as_it_was(
    make_images: Callable[..., ImageSet],
) -> None:
    images = make_images(3, 7).images
    model = _classifier().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    p = label_pool(model, images, World(), batch=8)
    assert model.training
    assert model.encoder.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval()(images.take(torch.arange(21))).softmax(1)
    torch.testing.assert_close(p, expected)


def test_label_pool_divides_over_workers_even_where_the_pool_does_not_divide(make_images: Callable[..., ImageSet]) -> None:
    images = make_images(3, 7).images
    model = _classifier()
    whole = label_pool(model, images, World())
    padded = torch.cat([whole, whole[-1:]])

    @dataclass(frozen=True)
    class Check(World):
        def gather(self, x: Tensor) -> Tensor:
            torch.testing.assert_close(x, padded[self.rows(22)])
            return padded

    for rank in (0, 1):
        assert torch.equal(label_pool(model, images, Check(rank, 2)), whole)


def test_a_frozen_teacher_stays_in_evaluation_mode_and_apart_from_the_original() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.5))
    frozen = Frozen(model)
    parent = nn.ModuleList([frozen]).train()
    assert parent.training
    assert not frozen.module.training
    x = torch.randn(3, 4)
    before = frozen(x)
    with torch.no_grad():
        model[1].weight.add_(1)
    assert torch.equal(frozen(x), before)
    assert not before.requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())


def _pair(views: str, channels: int = 3) -> PairEncoder:
    spec, statistics = EncoderSpec("conv4"), ((0.4,) * channels, (0.25,) * channels)
    first, second = (build_encoder(spec, (channels, 16, 16), *statistics) for _ in range(2))
    pair = PairEncoder(first, second, *statistics, views).eval()
    pair.name = "pair"
    return pair


def test_each_half_of_a_pair_sees_only_its_half() -> None:
    pair = _pair("halves")
    x = torch.rand(2, 3, 16, 16)
    other = x.clone()
    other[..., 8:] = torch.rand(2, 3, 16, 8)
    one, two = pair.both(x)
    changed_one, changed_two = pair.both(other)
    assert torch.equal(one, changed_one)
    assert not torch.equal(two, changed_two)
    left, right = pair.split(x)
    torch.testing.assert_close(left + right, x + 0.4)


def test_colour_views_divide_into_luminance_and_the_rest() -> None:
    pair = _pair("colour")
    x = torch.rand(2, 3, 8, 8)
    grey = x.mean(1, keepdim=True).expand_as(x)
    luminance, chrominance = pair.split(x)
    assert torch.equal(luminance[:, 0], luminance[:, 2])
    torch.testing.assert_close(luminance + chrominance, x + 0.4)
    torch.testing.assert_close(pair.split(grey)[1], torch.full_like(x, 0.4))
    with pytest.raises(UserError, match="3 channels"):
        _pair("colour", channels=1)


def test_a_pair_with_its_head_is_saved_and_loaded(tmp_path: Path) -> None:
    pair = _pair("halves")
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    model = Classifier(pair, 5).eval()
    save_predictor(tmp_path / "predictor.pt", model)
    loaded = load_predictor(tmp_path / "predictor.pt")
    assert torch.equal(loaded(x), model(x))
    assert set(pair.maps(x)) == set(pair.layers)


@pytest.mark.parametrize("module", [fixmatch, uda, remixmatch, s4l])
def test_augmentation_strength_scales_the_strong_views_alone(harness: Any, module: ModuleType) -> None:
    """Where a method has weak and strong branches. What a strength of 0 leaves of the strong one is seen by the views."""
    views = {}
    for strength in (0.0, 1.0):
        knobs = {"auxiliary": "exemplar"} if module is s4l else {}
        h = harness(module, augmentation_strength=strength, **knobs)
        h.loss(h.step())
        views[strength] = {name: torch.cat(h.of(name)) for name in {name for name, _ in h.views}}
    weak, strong = ("augment", "views") if module is s4l else ("weak", "strong")
    assert torch.equal(views[0.0][weak], views[1.0][weak])
    assert not torch.equal(views[0.0][strong], views[1.0][strong])
