"""SimCLR, MoCo, instance discrimination, PIRL and CMC: their losses from the formula, and who gets no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.batch import Batch, Step
from methods.contracts import TrainingError
from methods.data.records import TrainData
from methods.parts.contrast import sample_negative_indices
from methods.selfsup import cmc, instance_discrimination, moco, pirl, simclr
from methods.selfsup.shared import two_views
from methods.training import Training
from methods.world import World

Make = Callable[..., Training]
Data = Callable[..., TrainData]
Batches = Callable[..., Batch]
Steps = Callable[..., Step]


def unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("normalise", [True, False])
def test_simclr_is_nt_xent_of_its_two_views(
    train: Make, make_data: Data, make_batch: Batches, make_step: Steps, normalise: bool
) -> None:
    data = make_data()
    learner = train(simclr.METHOD, data, normalise=normalise).learner
    assert isinstance(learner, simclr.SimCLR)
    t = learner.config.temperature
    assert t == (0.5 if normalise else 30.0)
    total = learner.loss(make_step(make_batch(data, list(range(6))))).total
    z = (
        learner.head(learner.backbone(torch.cat(two_views(learner.augment, make_batch(data, list(range(6)))))))
        .double()
        .detach()
    )
    z = unit(z) if normalise else z
    expected = 0.0
    for i in range(12):
        scores = [float(z[i] @ z[j]) / t for j in range(12)]
        own = scores[(i + 6) % 12]
        expected += -own + math.log(sum(math.exp(s - own) for j, s in enumerate(scores) if j != i)) + own
    assert total.item() == pytest.approx(expected / 12, rel=1e-4)


def test_simclr_does_not_mind_the_order_of_images(train: Make) -> None:
    from methods.parts.losses import nt_xent

    one, two = torch.randn(2, 8, 5)
    order = torch.randperm(8)
    torch.testing.assert_close(nt_xent(one, two, 0.5), nt_xent(one[order], two[order], 0.5))
    torch.testing.assert_close(nt_xent(one, two, 0.5), nt_xent(two, one, 0.5))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_simclr_head_has_the_depth_it_is_told(train: Make, depth: int) -> None:
    learner = train(simclr.METHOD, head_depth=depth).learner
    assert sum(isinstance(m, torch.nn.Linear) for m in learner.head.modules()) == depth


def test_simclr_temperature_has_its_own_range_without_normalisation() -> None:
    declared = simclr.METHOD.knobs()["temperature"]
    variant = declared.variant({"normalise": False})
    assert variant is not None
    assert (variant.search.low, variant.search.high) == (10.0, 100.0)
    assert declared.variant({"normalise": True}) is None


def test_moco_keys_carry_no_gradient_and_follow_by_momentum(train: Make, make_data: Data) -> None:
    data = make_data()
    training = train(moco.METHOD, data, queue=32, momentum=0.9)
    learner = training.learner
    assert isinstance(learner, moco.MoCo)
    before = {k: v.clone() for k, v in learner.key.module.named_parameters()}
    training.one_step()
    step = training.step_at(1, 0.5)
    learner.loss(step).total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None and not p.requires_grad for p in learner.key.parameters())
    assert not learner.queue.keys.requires_grad
    assert all(p.grad is not None for p in learner.query.parameters())
    now, online = dict(learner.key.module.named_parameters()), dict(learner.query.named_parameters())
    for name, old in before.items():
        torch.testing.assert_close(now[name], 0.9 * old + 0.1 * online[name].detach(), rtol=1e-4, atol=1e-6)


def test_moco_loss_is_info_nce_against_the_queue(train: Make, make_data: Data, make_batch: Batches, make_step: Steps) -> None:
    data = make_data()
    learner = train(moco.METHOD, data, queue=8, shuffle_groups=1).learner
    assert isinstance(learner, moco.MoCo)
    batch = make_batch(data, [3, 1, 4, 5])
    keys = learner.queue.keys.clone().double()
    total = learner.loss(make_step(batch)).total
    q = unit(
        learner.query(learner.augment(batch.images, make_batch(data, [3, 1, 4, 5]).stream.fork("query"))).double().detach()
    )
    k = unit(learner.key(learner.augment(batch.images, make_batch(data, [3, 1, 4, 5]).stream.fork("key"))).double())
    expected = 0.0
    for i in range(4):
        scores = [float(q[i] @ k[i]) / 0.2, *(float(q[i] @ other) / 0.2 for other in keys)]
        expected += -scores[0] + math.log(sum(math.exp(s) for s in scores))
    assert total.item() == pytest.approx(expected / 4, rel=1e-4)


def test_moco_pushes_the_keys_of_the_batch_in_order(
    train: Make, make_data: Data, make_batch: Batches, make_step: Steps
) -> None:
    data = make_data()
    learner = train(moco.METHOD, data, queue=12).learner
    assert isinstance(learner, moco.MoCo)
    learner.eval()  # Without batch statistics shuffling cannot matter: keys must come back in the batch's order.
    index = [7, 0, 2, 9, 11, 30, 4, 8]
    step = make_step(make_batch(data, index))
    learner.loss(step)
    x = learner.augment(data.images.take(torch.tensor(index)), make_batch(data, index).stream.fork("key"))
    expected = F.normalize(learner.key(x), dim=1)
    learner.after_step(step)
    torch.testing.assert_close(learner.queue.keys[:8], expected, rtol=1e-4, atol=1e-5)


def test_moco_shuffles_batch_statistics(train: Make, make_data: Data, make_batch: Batches) -> None:
    data = make_data()
    keys = {}
    for groups in (1, 4):
        learner = train(moco.METHOD, data, queue=16, shuffle_groups=groups).learner
        assert isinstance(learner, moco.MoCo)
        keys[groups] = learner.keys(make_batch(data, list(range(16))), World())
    assert keys[1].shape == keys[4].shape
    assert (keys[1] - keys[4]).abs().max() > 1e-3


def test_moco_groups_are_one_division_for_any_number_of_workers(train: Make) -> None:
    learner = train(moco.METHOD, queue=16, shuffle_groups=4).learner
    assert isinstance(learner, moco.MoCo)
    order = torch.randperm(32)
    for batch in (32, 20, 8):
        one, two = (learner.groups(order[:batch], World(0, size)) for size in (1, 2))
        assert [g.tolist() for g in one] == [g.tolist() for g in two]
        assert torch.cat(one).tolist() == order[:batch].tolist()


def test_moco_refuses_a_queue_longer_than_the_data(train: Make, make_data: Data) -> None:
    with pytest.raises(TrainingError, match=r"moco\.queue must not exceed the number of training images, 48, got 64"):
        train(moco.METHOD, make_data(48), queue=64)


def test_instance_discrimination_nce_is_the_formula(
    train: Make, make_data: Data, make_batch: Batches, make_step: Steps
) -> None:
    data = make_data(20)
    learner = train(instance_discrimination.METHOD, data, negatives=7).learner
    assert isinstance(learner, instance_discrimination.InstanceDiscrimination)
    index = [3, 0, 9]
    learner.bank.met.fill_(True)
    bank = learner.bank.bank.clone().double()
    total = learner.loss(make_step(make_batch(data, index))).total
    fresh = make_batch(data, index)
    v = unit(learner.head(learner.backbone(learner.augment(fresh.images, fresh.stream))).double().detach())
    noise = bank[sample_negative_indices(20, 7, fresh.stream.fork("noise"))]
    t, n, m = 0.07, 20, 7
    z = n * sum(math.exp(float(v[i] @ f) / t) for i in range(3) for f in noise) / (3 * m)
    assert float(learner.log_z) == pytest.approx(math.log(z), rel=1e-4)

    def h(i: int, f: Tensor) -> float:
        p = math.exp(float(v[i] @ f) / t) / z
        return p / (p + m / n)

    expected = sum(-math.log(h(i, bank[index[i]])) - sum(math.log(1 - h(i, f)) for f in noise) for i in range(3)) / 3
    assert total.item() == pytest.approx(expected, rel=1e-3)


def test_instance_discrimination_estimates_its_constant_once(train: Make) -> None:
    training = train(instance_discrimination.METHOD, negatives=8)
    training.one_step()
    constant = training.learner.log_z.clone()
    training.one_step()
    assert torch.equal(training.learner.log_z, constant)
    assert constant != 0


def test_instance_discrimination_softmax_is_the_formula(
    train: Make, make_data: Data, make_batch: Batches, make_step: Steps
) -> None:
    data = make_data(20)
    learner = train(instance_discrimination.METHOD, data, loss="softmax").learner
    assert isinstance(learner, instance_discrimination.InstanceDiscrimination)
    index = [3, 0, 9]
    learner.bank.met.fill_(True)
    total = learner.loss(make_step(make_batch(data, index))).total
    fresh = make_batch(data, index)
    v = unit(learner.head(learner.backbone(learner.augment(fresh.images, fresh.stream))).double().detach())
    expected = 0.0
    for i in range(3):
        scores = [float(v[i] @ f.double()) / 0.07 for f in learner.bank.bank]
        expected += -scores[index[i]] + math.log(sum(math.exp(s) for s in scores))
    assert total.item() == pytest.approx(expected / 3, rel=1e-4)


@pytest.mark.parametrize("method", [instance_discrimination.METHOD, pirl.METHOD], ids=lambda m: m.name)
def test_banks_change_only_where_images_were_seen(train: Make, make_data: Data, method: object) -> None:
    training = train(method, make_data(48), negatives=8)
    bank = training.learner.bank.bank
    assert bank.shape[0] == 48
    before = bank.clone()
    seen = training.step_at(0, 0.0).from_pool().index
    training.one_step()
    changed = (bank != before).any(1).nonzero().flatten()
    assert sorted(changed.tolist()) == sorted(seen.tolist())
    assert sorted(training.learner.bank.met.nonzero().flatten().tolist()) == sorted(seen.tolist())
    torch.testing.assert_close(bank[seen], training.learner.fresh)  # rows start at the first embedding, not half way to it
    assert not bank.requires_grad
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(48))


def test_pirl_agreement_is_the_formula() -> None:
    memory, z = (unit(torch.randn(3, 4, dtype=torch.float64)) for _ in range(2))
    noise = unit(torch.randn(6, 4, dtype=torch.float64))
    same = torch.zeros(3, 6, dtype=torch.bool)
    same[1, 2] = True
    expected = 0.0
    for i in range(3):
        own = math.exp(float(memory[i] @ z[i]) / 0.5)
        others = [math.exp(float(z[i] @ noise[k]) / 0.5) for k in range(6) if not same[i, k]]
        whole = own + sum(others)
        expected += -math.log(own / whole) - sum(math.log(1 - o / whole) for o in others)
    assert float(pirl.agreement(memory, z, noise, same, 0.5)) == pytest.approx(expected / 3, rel=1e-9)


def test_pirl_does_not_mind_the_order_of_the_patches_it_shows(train: Make, make_data: Data, make_batch: Batches) -> None:
    data = make_data()
    learner = train(pirl.METHOD, data).learner
    assert isinstance(learner, pirl.PIRL)
    puzzle = learner.puzzle(data.images.take(torch.arange(3)), make_batch(data, [0, 1, 2]).stream)
    again = learner.puzzle(data.images.take(torch.arange(3)), make_batch(data, [0, 1, 2]).stream)
    assert torch.equal(puzzle, again)
    assert puzzle.shape == (3, 9, 3, 4, 4)


@pytest.mark.parametrize("source", ["batch", "bank"])
def test_cmc_contrasts_lightness_with_colour(train: Make, make_data: Data, source: str) -> None:
    training = train(cmc.METHOD, make_data(), negatives_from=source, **({"negatives": 8} if source == "bank" else {}))
    learner = training.learner
    learner.loss(training.step_at(0, 0.0)).total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.backbone.light.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.backbone.colour.parameters())
    assert (learner.light_bank is None) == (source == "batch")


def test_cmc_refuses_grey_images(train: Make, make_data: Data) -> None:
    with pytest.raises(TrainingError, match="cmc needs images of 3 colour channels, got 1"):
        train(cmc.METHOD, make_data(channels=1))
