"""Autoencoders, inpainting, colour tasks and the rotation GAN: corruptions, targets, and who teaches whom."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from methods.batch import Batch, RandomStream, Step
from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.parts.augment import rgb_to_lab
from methods.parts.colour import bin_colours, colour_bins, lab_to_rgb, possible_bins, rebalanced
from methods.parts.composites import GreyEncoder, lab01
from methods.parts.decoders import ImageDecoder, MapDecoder, TokenDecoder, map_channels
from methods.parts.encoders import EncoderSpec, build_encoder, load_encoder, save_encoder
from methods.parts.gan import discriminator_loss, frozen, generator_loss
from methods.selfsup import autoencoder, colorization, denoising_autoencoder, inpainting, rotation_gan, split_brain
from methods.training import Training

Make = Callable[..., Training]
Data = Callable[..., TrainData]
Batches = Callable[..., Batch]
Steps = Callable[..., Step]


def draws(n: int) -> RandomStream:
    return RandomStream(1, n, slice(0, n), torch.device("cpu"))


@pytest.mark.parametrize("side", [8, 16, 28, 33])
def test_decoders_give_the_size_they_are_asked_for(side: int) -> None:
    images = ImageDecoder(7, (3, side, side + 2))(torch.randn(2, 7))
    assert images.shape == (2, 3, side, side + 2)
    assert 0 <= images.min() <= images.max() <= 1
    assert MapDecoder(5, 9, (side, side))(torch.randn(2, 5, 4, 4)).shape == (2, 9, side, side)


def test_token_decoder_puts_every_visible_token_in_its_place() -> None:
    decoder = TokenDecoder(6, (2, 2), 5, 32, 0)
    tokens, order = torch.randn(1, 2, 6), torch.tensor([[2, 0, 3, 1]])
    out = decoder(tokens, order.argsort(dim=1))
    x = decoder.positions.clone()
    x[2], x[0] = x[2] + decoder.embed(tokens[0, 0]), x[0] + decoder.embed(tokens[0, 1])
    x[3], x[1] = x[3] + decoder.hidden, x[1] + decoder.hidden
    torch.testing.assert_close(out[0], decoder.pixels(decoder.norm(x)))


def test_autoencoder_loss_is_the_squared_error(train: Make, make_data: Data, make_batch: Batches, make_step: Steps) -> None:
    data = make_data()
    learner = train(autoencoder.METHOD, data, bottleneck=8).learner
    assert isinstance(learner, autoencoder.Autoencoder)
    total = learner.loss(make_step(make_batch(data, [0, 1, 2]))).total
    batch = make_batch(data, [0, 1, 2])
    x = learner.augment(batch.images, batch.stream)
    difference = (learner.reconstruct(x) - x).flatten().tolist()
    assert total.item() == pytest.approx(sum(d * d for d in difference) / len(difference), rel=1e-4)
    assert learner.narrow.out_features == 8


def test_corruption_hides_the_asked_share_in_whole_squares() -> None:
    images = torch.full((400, 3, 16, 16), 0.25)
    middle = torch.tensor([0.5, 0.6, 0.7])
    x = denoising_autoencoder.corrupted(images, draws(400), 0.0, 0.3, middle)
    hidden = x[:, 0] == 0.5
    squares = hidden.view(400, 8, 2, 8, 2)
    assert torch.equal(squares.all(4).all(2), squares.any(4).any(2))
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / (400 * 64)))
    assert torch.equal(x[hidden[:, None].expand_as(x)].unique(), middle.sort().values)
    noisy = denoising_autoencoder.corrupted(images + 0.25, draws(400), 0.1, 0.0, middle)
    assert (noisy - 0.5).std().item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
def test_hidden_square_has_its_area_and_moves(share: float) -> None:
    hidden = inpainting.hidden_square(draws(64), 32, 32, share)
    area = hidden.float().mean((1, 2, 3))
    assert (area == area[0]).all()
    assert area[0].item() == pytest.approx(share, abs=0.03)
    assert len({tuple(h.flatten().nonzero()[0].tolist()) for h in hidden}) > 10


def test_inpainting_looks_only_at_the_hidden_square(
    train: Make, make_data: Data, make_batch: Batches, make_step: Steps
) -> None:
    data = make_data()
    learner = train(inpainting.METHOD, data).learner
    assert isinstance(learner, inpainting.Inpainting)
    total = learner.loss(make_step(make_batch(data, [0, 1, 2]))).total
    batch = make_batch(data, [0, 1, 2])
    x = learner.augment(batch.images, batch.stream.fork("view"))
    holed, hidden = learner.holed(x, batch.stream.fork("hole"))
    assert not torch.equal(holed, x)
    painted = learner.decoder(learner.backbone(holed))
    expected = (painted - x)[hidden.expand_as(x)].square().mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_frozen_passes_gradients_to_inputs_only() -> None:
    module, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    torch.testing.assert_close(frozen(module, x), module(x))
    frozen(module, x).sum().backward()
    assert x.grad is not None
    assert module.weight.grad is None


def test_gan_losses_are_hinges() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1) / 2)
    assert generator_loss(fake).item() == pytest.approx(1.0)


def test_rotation_gan_teaches_each_side_its_own_loss(train: Make, make_data: Data) -> None:
    training = train(rotation_gan.METHOD, make_data(), rotation_weight=0.0, generator_rotation=0.0)
    learner = training.learner
    assert isinstance(learner, rotation_gan.RotationGAN)
    step = training.step_at(0, 0.0)
    loss = learner.loss(step)
    loss.total.backward()  # type: ignore[no-untyped-call]
    # A plain GAN: the head of turns learns nothing, both players learn.
    assert learner.discriminator.turn.weight.grad is not None
    assert learner.discriminator.turn.weight.grad.abs().sum() == 0
    assert learner.discriminator.real.weight.grad is not None
    assert learner.discriminator.real.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.generator.start.parameters())
    # The verdict alone moves the discriminator: its real head's gradient is that of the hinge losses.
    assert loss.total.item() == pytest.approx((loss.parts["discriminator"] + loss.parts["generator"]).item(), rel=1e-5)


def test_lab_and_back() -> None:
    images = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(lab_to_rgb(lab01(images)), images, rtol=1e-3, atol=2e-3)
    lab = rgb_to_lab(images)
    torch.testing.assert_close(lab01(images)[:, 0] * 100, lab[:, 0])


def test_colour_bins_are_the_possible_cells_of_the_plane() -> None:
    numbers = possible_bins(12)
    count = int(numbers.max()) + 1
    assert 40 < count < 144
    assert sorted(set(numbers.tolist())) == list(range(count))
    ab = lab01(torch.rand(4, 3, 8, 8))[:, 1:]
    bins = colour_bins(ab, numbers)
    middles = bin_colours(numbers)[bins].permute(0, 3, 1, 2)
    assert (middles - ab).abs().max() < 1.5 / 12


def test_rebalanced_weights_are_the_formula_and_average_to_one() -> None:
    frequency = torch.tensor([90.0, 9.0, 1.0, 0.0])
    w = rebalanced(frequency)
    share = [0.9, 0.09, 0.01, 0.0]
    raw = [1 / (0.5 * p + 0.5 / 4) for p in share]
    scale = sum(p * r for p, r in zip(share, raw, strict=True))
    assert w.tolist() == pytest.approx([r / scale for r in raw], rel=1e-5)


@pytest.mark.parametrize("method", [colorization.METHOD, split_brain.METHOD], ids=lambda m: m.name)
def test_colour_tasks_refuse_grey_images(train: Make, make_data: Data, method: object) -> None:
    with pytest.raises(TrainingError, match="needs images of 3 colour channels, got 1"):
        train(method, make_data(channels=1))


def test_grey_encoder_does_not_see_colour() -> None:
    encoder = GreyEncoder(build_encoder(EncoderSpec(), (3, 16, 16), (0.5,) * 3, (0.25,) * 3)).eval()
    lab = lab01(torch.rand(2, 3, 16, 16) * 0.5 + 0.25)
    other = lab.clone()
    other[:, 1:] = 0.5
    with torch.no_grad():
        seen = [encoder(lab_to_rgb(x)) for x in (lab, other)]
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", [colorization.METHOD, split_brain.METHOD], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["resnet_small", "conv4", "vit_tiny"])
def test_composed_encoders_are_exported_whole(train: Make, make_data: Data, method: object, name: str, tmp_path: Path) -> None:
    data = make_data()
    training = train(method, data, name)
    training.one_step()
    encoder = training.learner.eval().encoder()
    save_encoder(tmp_path / "encoder.pt", encoder)
    again = load_encoder(tmp_path / "encoder.pt")
    images = data.images.take(torch.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(again(images), encoder(images))
        maps = again.maps(images)
    assert tuple(maps) == again.layers
    assert map_channels(again) == {layer: x.shape[1] for layer, x in maps.items()}


def test_split_brain_halves_see_only_their_channels(train: Make, make_data: Data) -> None:
    learner = train(split_brain.METHOD, make_data()).learner
    assert isinstance(learner, split_brain.SplitBrain)
    learner.eval()
    lab = torch.rand(2, 3, 16, 16)
    changed = lab.clone()
    changed[:, 1:] = torch.rand(2, 2, 16, 16)
    colour, light = learner.scores(lab)
    same_colour, other_light = learner.scores(changed)
    torch.testing.assert_close(colour, same_colour)
    assert (light - other_light).abs().max() > 1e-4
