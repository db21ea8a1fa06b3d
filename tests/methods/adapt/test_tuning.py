"""The methods that tune a pretrained encoder: what moves, by how much, what stays, and what is exported."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from methods.adapt import bitfit, continued_pretraining, fine_tune, lora, partial_freeze, staged_unfreezing
from methods.adapt.staged_unfreezing import held_at
from methods.adapt.tuning import warm_start
from methods.contracts import Method, TrainingError
from methods.encoder import Encoder, EncoderSpec
from methods.parts.encoders import build_encoder
from methods.parts.heads import load_predictor, save_predictor
from methods.parts.low_rank import LowRank
from methods.parts.modes import evaluating
from methods.parts.tuned import TunedClassifier, blocks, scales_or_shifts
from methods.testing import tiny_batch, tiny_data
from methods.training import Training, TrainSettings
from methods.world import World
from search_spaces.domains import build

ROWS = (fine_tune, staged_unfreezing, lora, bitfit, partial_freeze)


def start(module: Any, encoder: str = "resnet_small", epochs: int = 2, **values: Any) -> Any:
    """A training on 64 tiny images in fp32: 4 steps an epoch."""
    config = build(module.METHOD.config, {"batch_size": 16, **values})
    settings = TrainSettings(epochs, EncoderSpec(encoder), epoch_images=64, precision="fp32")
    return Training(module.METHOD, config, tiny_data(), settings)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of tensors that are no longer what they were to the last bit."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class Plain(nn.Module):
    """A network of one's own without layers that could be told apart by their maps, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(3 * 16 * 16, 12), nn.Dropout(0.5), nn.Linear(12, 6, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.last(self.drop(torch.tanh(self.first(images.flatten(1)))))
        return x


class Cut(nn.Module):
    """A network of one's own with two maps, and layers outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.middle = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.norm = nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.norm(self.middle(self.stem(images) * self.scale).mean((2, 3)))
        return x


# Blocks


def specs() -> dict[str, EncoderSpec]:
    named = ["resnet_small", "conv4", "vit_tiny", "resnet18", "lite0", "torchvision/resnet18", "torchvision/convnext_tiny"]
    named += ["torchvision/vit_b_32", "torchvision/mobilenet_v3_small"]
    own = {"own": EncoderSpec("own", module=Plain()), "own, cut": EncoderSpec("own", module=Cut())}
    return {name: EncoderSpec(name, "none") for name in named} | own


@pytest.mark.parametrize("name", specs())
def test_blocks_hold_every_parameter_once_and_come_in_order(name: str) -> None:
    encoder = build_encoder(specs()[name], (3, 16, 16), (0.5,) * 3, (0.2,) * 3)
    found = blocks(encoder)
    assert len(found) == {"own": 1, "own, cut": 2}.get(name, len(encoder.layers))
    held = [id(p) for modules in found for module in modules for p in module.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    ends: list[int] = []
    for number, modules in enumerate(found):
        last = [module for module in modules if not isinstance(module, nn.ParameterList)][-1]
        last.register_forward_hook(lambda *_, number=number: ends.append(number))
    with torch.no_grad():
        encoder.eval()(tiny_batch().images[:2])
    assert ends == list(range(len(found)))


# What moves


@pytest.mark.parametrize("encoder", ["resnet_small", "vit_tiny"])
@pytest.mark.parametrize("module", ROWS)
def test_frozen_statistics_do_not_move_and_trained_ones_do(module: Any, encoder: str) -> None:
    for how in ("frozen", "trained"):
        training = start(module, encoder, batch_norm=how)
        before = state_of(training.learner.encoder())
        training.train_epoch()
        layers = [name for name, layer in training.learner.encoder().named_modules() if isinstance(layer, _BatchNorm)]
        found = {name.rpartition(".")[0] for name in moved(before, training.learner.encoder()) if name.endswith("running_var")}
        expected = set(layers) if how == "trained" and module is not partial_freeze else set()
        if module is staged_unfreezing:
            assert found <= expected
            assert bool(found) == bool(expected)
        elif module is not partial_freeze:
            assert found == expected
        frame = training.learner.predictor().head[0]
        assert not frame.training
        with evaluating(training.learner):  # as a protocol scores it, and puts it back
            pass
        training.learner.train()
        assert not frame.training
        modes = {layer.training for layer in training.learner.encoder().modules() if isinstance(layer, _BatchNorm)}
        if how == "frozen":
            assert modes <= {False}


@pytest.mark.parametrize("encoder", ["resnet_small", "vit_tiny"])
def test_bitfit_tunes_biases_and_scales_alone(encoder: str) -> None:
    training = start(bitfit, encoder)
    inside = training.learner.encoder().inside
    before = state_of(inside)
    training.train_epoch()
    parameters = {name for name, _ in inside.named_parameters()}
    norms = {f"{name}.weight" for name, m in inside.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))}
    expected = {name for name in parameters if name.endswith(".bias")} | norms
    assert moved(before, inside) == expected
    assert len(expected) > 4
    assert not any(before[name].dim() > 1 for name in expected)
    assert {id(p) for p in scales_or_shifts(inside)} == {id(inside.get_parameter(name)) for name in expected}


def test_partial_freezing_keeps_the_first_blocks_to_the_last_bit() -> None:
    for k, kept in ((0, 0), (2, 2), (3, 3), (100, 3)):  # a resnet_small has 4
        training = start(partial_freeze, frozen_blocks=k, batch_norm="trained")
        inside = training.learner.encoder().inside
        before = [[state_of(m) for m in modules] for modules in blocks(inside)]
        training.train_epoch()
        same = [
            all(not moved(old, m) for old, m in zip(olds, modules, strict=True))
            for olds, modules in zip(before, blocks(inside), strict=True)
        ]
        assert same == [number < kept for number in range(4)]


def test_staged_unfreezing_begins_at_the_last_block_and_reaches_the_first() -> None:
    training = start(staged_unfreezing, epochs=4, unfreezing=0.75, layer_decay=1.0)  # 16 steps
    inside = training.learner.encoder().inside
    began: dict[int, int] = {}
    before = [[p.detach().clone() for m in modules for p in m.parameters()] for modules in blocks(inside)]
    for step in range(16):
        training.one_step()
        for number, modules in enumerate(blocks(inside)):
            now = [p for m in modules for p in m.parameters()]
            if number not in began and any(not torch.equal(a, b) for a, b in zip(before[number], now, strict=True)):
                began[number] = step
    assert began == {3: 0, 2: 4, 1: 8, 0: 12}


def test_blocks_join_at_even_intervals() -> None:
    for count in (1, 2, 5, 9):
        for unfreezing in (0.3, 1.0):
            held = [held_at(k / 1000, count, unfreezing) for k in range(1000)]
            assert held[0] == count - 1
            assert held == sorted(held, reverse=True)
            for number in range(1, count):  # the block before the last `number` joins after number / (count - 1) of the time
                expected = number / (count - 1) * unfreezing
                joined = next((k / 1000 for k, n in enumerate(held) if n <= count - 1 - number), 1.0)
                assert joined == pytest.approx(expected, abs=2e-3)
    assert held_at(0.0, 4, 0.0) == 0


# By how much


def test_rates_fall_block_by_block() -> None:
    """AdamW's first step moves each parameter with a gradient by its rate, whatever the gradient."""
    training = start(fine_tune, layer_decay=0.5, head_rate=3.0, lr=1.6e-2, weight_decay=0.0)
    learner = training.learner
    training.train_epoch()  # past the warm-up
    before = copy.deepcopy(learner)
    training.optimisation.optimizer.state.clear()
    training.one_step()
    rate = training.optimisation.rate(4 / 8)
    assert 1e-4 < rate < 1e-3
    each = list(blocks(learner.encoder()))
    old = list(blocks(before.encoder()))
    expected = [rate * 0.5 ** (len(each) - 1 - number) for number in range(len(each))]
    for modules, olds, by in zip(
        [*each, (learner.model.head,)], [*old, (before.model.head,)], [*expected, 3 * rate], strict=True
    ):
        after = [p.detach().double() for m in modules for p in m.parameters()]
        steps = [
            (a - b.detach().double()).abs().max() for a, b in zip(after, (p for m in olds for p in m.parameters()), strict=True)
        ]
        assert float(max(steps)) == pytest.approx(by, rel=2e-2)


def test_a_fork_goes_on_with_its_own_rates() -> None:
    parent = start(fine_tune, layer_decay=0.5)
    parent.train_epoch()
    fork = start(fine_tune, layer_decay=1.0)
    fork.adopt(parent.state())
    fork.one_step()
    assert {group["lr"] for group in fork.optimisation.optimizer.param_groups} == {fork.optimisation.rate(4 / 8)}


# Low rank


def test_the_merged_weight_is_the_base_and_the_product() -> None:
    training = start(lora, rank=3, alpha=6.0)
    learner = training.learner
    inside = learner.encoder().inside
    before = state_of(inside)
    kernels = [name for name, value in inside.named_parameters() if value.dim() > 1]
    training.train_epoch()
    assert moved(before, inside) == set(kernels)
    updates = learner.updates
    assert {name.removeprefix("inside.") for name in updates.names} == set(kernels)
    for name, down, up in zip(updates.names, updates.down, updates.up, strict=True):
        base, own = before[name.removeprefix("inside.")].double().numpy(), inside.get_parameter(name.removeprefix("inside."))
        a, b = down.detach().double().numpy(), up.detach().double().numpy()
        out = base.shape[0]
        assert a.shape[0] == b.shape[1] == min(3, out, base[0].size)
        expected = base.reshape(out, -1) + 6.0 / 3 * sum(np.outer(b[:, r], a[r]) for r in range(a.shape[0]))
        np.testing.assert_allclose(own.detach().double().numpy().reshape(out, -1), expected, rtol=1e-5, atol=1e-6)
        assert np.linalg.matrix_rank((own.detach() - before[name.removeprefix("inside.")]).double().reshape(out, -1), 1e-5) <= 3
        assert not own.requires_grad


def test_a_convolution_with_its_update_is_two_convolutions_beside_it() -> None:
    """LoCon's second path: a convolution to r channels, then a pointwise one."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    updates = LowRank(conv, rank=2, alpha=5.0)
    assert updates.names == ("weight",)
    nn.init.normal_(updates.up[0])
    x = torch.randn(2, 4, 9, 9)
    down, up = updates.down[0].view(2, 4, 3, 3), updates.up[0].view(6, 2, 1, 1)
    expected = conv(x) + 5.0 / 2 * F.conv2d(F.conv2d(x, down, stride=2, padding=1), up)
    updates.merge(conv)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_depthwise_and_attention_weights_are_updated_too() -> None:
    conv, attention = nn.Conv2d(8, 8, 3, groups=8), nn.MultiheadAttention(8, 2)
    assert [tuple(a.shape) for a in LowRank(conv, 20, 1.0).down] == [(8, 9)]
    updates = LowRank(attention, 2, 1.0)
    assert updates.names == ("in_proj_weight", "out_proj.weight")
    assert [tuple(b.shape) for b in updates.up] == [(24, 2), (8, 2)]


def test_low_rank_begins_where_the_encoder_is_and_trains_as_it_is_scored() -> None:
    training = start(lora)
    learner = training.learner
    images = tiny_batch().images
    for _ in range(3):
        with torch.no_grad(), evaluating(learner):
            plain = learner.predictor()(images)
            weights = {f"encoder.{name}": value for name, value in learner.updates.weights().items()}
            updated = torch.func.functional_call(learner.model, weights, (images,))
        torch.testing.assert_close(updated, plain, rtol=1e-5, atol=1e-6)
        training.one_step()


@pytest.mark.parametrize("module", ROWS)
def test_what_is_exported_is_a_plain_encoder_with_a_head(module: Any) -> None:
    training = start(module)
    training.train_epoch()
    learner = training.learner
    file = io.BytesIO()
    save_predictor(file, learner.predictor(), ("a", "b", "c", "d"))
    file.seek(0)
    loaded = load_predictor(file)
    fresh = build_encoder(EncoderSpec("resnet_small"), (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    assert {name.removeprefix("inside.") for name in learner.encoder().state_dict()} - set(fresh.state_dict()) == {
        "normalise.mean",
        "normalise.std",
    } - set(fresh.state_dict())
    with torch.no_grad(), evaluating(learner):
        torch.testing.assert_close(loaded(tiny_batch().images), learner.predictor()(tiny_batch().images))


# What is frozen costs no memory


def stored(training: Any) -> int:
    """Bytes of activations that a step's forward pass keeps for the backward pass; weights are not counted."""
    learner = training.learner
    training.one_step()  # the first fits the probe
    own = {t.untyped_storage().data_ptr() for t in (*learner.parameters(), *learner.buffers())}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = learner.loss(training.step_at(1, 0.1))
    total = sum(kept.values())
    loss.total.backward()
    return total


def test_frozen_blocks_store_no_activations() -> None:
    each = [stored(start(partial_freeze, frozen_blocks=k)) for k in range(4)]
    assert all(less < more for more, less in pairwise(each)), "each frozen block stores less"
    assert each[3] < each[0] / 2
    assert stored(start(staged_unfreezing, unfreezing=0.9)) == pytest.approx(each[3], rel=0.01)


def test_dropout_of_a_frozen_block_is_off_and_of_a_tuned_one_on() -> None:
    encoder = build_encoder(EncoderSpec("own", module=Cut()), (3, 16, 16), (0.5,) * 3, (0.2,) * 3)
    model = TunedClassifier(encoder, nn.Linear(8, 2), frozen_norm=False).train()
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    assert dropout.training
    model.hold(2)
    assert not dropout.training
    model.train()
    assert not dropout.training
    model.hold(1)
    assert dropout.training
    assert not model.eval().training
    assert not dropout.training


# The head it begins with


@pytest.mark.parametrize("views", ["one", "averaged"])
def test_training_begins_at_a_linear_probe(views: str) -> None:
    """As the labelled images' embeddings have it: centred, of unit length, with a penalty; in plain float64."""
    training = start(fine_tune, views=views)
    model, data = training.learner.model, tiny_data()
    warm_start(model, data, World())
    known = np.flatnonzero(data.label >= 0)
    images = data.images.take(torch.from_numpy(known))
    with torch.no_grad(), evaluating(model):
        z = model.encoder(images).double().numpy()
        logits = model(images).double().numpy()
    inside = model.encoder if views == "one" else model.encoder.inside
    with torch.no_grad(), evaluating(inside):
        both = (inside(images) + inside(images.flip(3))) / 2 if views == "averaged" else inside(images)
    np.testing.assert_allclose(z, both, rtol=1e-4, atol=1e-5)
    u = z - z.mean(0)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    weight = model.head[2].weight.detach().double().numpy()
    np.testing.assert_allclose(logits, u @ weight.T, rtol=1e-3, atol=1e-3)
    # At the optimum of 1/2 |W|^2 + 10 sum_i H(y_i, softmax(W u_i)) the gradient is zero.
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = weight + 10 * (p - np.eye(4)[data.label[known]]).T @ u
    assert np.abs(gradient).max() < 0.02 * np.abs(weight).max()
    assert model.training


def test_a_class_without_a_label_never_wins() -> None:
    data = tiny_data()
    data.label[data.label == 2] = -1
    settings = TrainSettings(2, EncoderSpec("resnet_small"), epoch_images=64, precision="fp32")
    training = Training(fine_tune.METHOD, build(fine_tune.Config, {"batch_size": 16}), data, settings)
    training.train_epoch()
    assert training.finite
    with torch.no_grad(), evaluating(training.learner):
        assert 2 not in training.learner.predictor()(data.images.take(torch.arange(64))).argmax(1)


# What cannot be tuned


class Rigid(Encoder):
    """No parameters at all, as an ONNX file's."""

    layers = ()
    dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {}


class Scaled(Rigid):
    """One parameter that is neither a bias nor a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.scale


@pytest.mark.parametrize(
    ("method", "module", "words"),
    [
        *(
            (m.METHOD, Rigid(), f"{m.METHOD.name} needs an encoder that can be trained, got one without parameters")
            for m in ROWS
        ),
        (bitfit.METHOD, Scaled(), "needs an encoder with biases or normalisation layers"),
        (lora.METHOD, Scaled(), "needs an encoder with torch's linear or convolution layers"),
    ],
)
def test_an_encoder_that_cannot_be_tuned_so_is_refused_in_a_line(method: Method, module: nn.Module, words: str) -> None:
    settings = TrainSettings(1, EncoderSpec("own", module=module), epoch_images=64)
    with pytest.raises(TrainingError, match=words) as error:
        Training(method, build(method.config, {}), tiny_data(), settings)
    assert "\n" not in str(error.value)


# After more pretraining


@pytest.mark.parametrize("objective", continued_pretraining.OBJECTIVES)
def test_tuning_goes_on_from_the_encoder_that_was_pretrained(objective: str) -> None:
    values = {"pretrain_batch_size": 16, "objective": objective, "views": "one"}
    training = start(continued_pretraining, **values)
    before = state_of(training.learner.encoder())
    training.one_step()
    pretrained = state_of(training.learner.encoder())
    assert type(training.learner) is continued_pretraining.OBJECTIVES[objective].learner
    kernels = {name for name, value in before.items() if value.dim() == 4 and not name.startswith("normalise")}
    assert kernels <= moved(before, training.learner.encoder())
    training.enter(1)
    assert not moved(pretrained, training.learner.encoder())
    training.one_step()
    assert kernels <= moved(pretrained, training.learner.encoder())


def test_no_label_is_read_before_the_tuning() -> None:
    for stage, labelled in ((0, 0), (1, 16)):
        training = start(continued_pretraining, pretrain_batch_size=32)
        if stage:
            training.enter(stage)
        spec = training.learner.batch_spec()
        assert (spec.pool, spec.labelled) == (0 if stage else 32, labelled)
