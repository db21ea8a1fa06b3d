"""Contrast parts against plain loops in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.batch import RandomStream
from methods.parts.contrast import (
    contrastive_accuracy,
    in_batch_info_nce,
    initialise_bank,
    key_accuracy,
    sample_negative_indices,
    sampled_nt_xent,
    update_bank,
)
from methods.parts.losses import nt_xent
from methods.parts.queue import MemoryBank
from methods.world import World

ALONE = World()


def draws(total: int, rows: slice | None = None, seed: int = 3) -> RandomStream:
    return RandomStream(seed, total, rows or slice(0, total), torch.device("cpu"))


def unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True)


def test_sampled_nt_xent_is_the_formula_over_the_sample() -> None:
    b, negatives, t = 5, 3, 0.4
    one, two = torch.randn(2, b, 4, dtype=torch.float64)
    loss = sampled_nt_xent(one, two, t, ALONE, True, negatives, draws(b))
    luck = torch.cat(draws(b).uniform(2, 2 * b).unbind(1))
    z = unit(torch.cat([one, two]))
    total = 0.0
    for i in range(2 * b):
        partner = (i + b) % (2 * b)
        others = sorted((j for j in range(2 * b) if j not in (i, partner)), key=lambda j: -float(luck[i, j]))[:negatives]
        scores = [float(z[i] @ z[j]) / t for j in (partner, *others)]
        total += -scores[0] + math.log(sum(math.exp(s) for s in scores))
    assert math.isclose(float(loss), total / (2 * b), rel_tol=1e-6)


def test_sampling_all_negatives_is_nt_xent() -> None:
    one, two = torch.randn(2, 6, 4, dtype=torch.float64)
    for normalise in (True, False):
        whole = nt_xent(one, two, 0.5, ALONE, normalise)
        torch.testing.assert_close(sampled_nt_xent(one, two, 0.5, ALONE, normalise, 1000, draws(6)), whole)


def test_fewer_negatives_make_an_easier_task() -> None:
    one, two = torch.randn(2, 16, 8)
    losses = [float(sampled_nt_xent(one, two, 0.5, ALONE, True, k, draws(16))) for k in (1, 4, 16, 30)]
    assert losses == sorted(losses)


def test_partners_found_counts_views_whose_partner_is_nearest() -> None:
    one = torch.eye(4)
    assert float(contrastive_accuracy(one, one * 3, ALONE)) == 1
    assert float(contrastive_accuracy(one, one.roll(1, 0), ALONE)) == 0
    half = one.clone()
    half[[0, 1]] = half[[1, 0]]
    assert float(contrastive_accuracy(one, half, ALONE)) == 0.5


def test_keys_found() -> None:
    query = torch.eye(3)
    assert float(key_accuracy(query, query, -query)) == 1
    assert float(key_accuracy(query, -query, query)) == 0


def test_matching_is_cross_entropy_of_the_own_key() -> None:
    query, key = torch.randn(2, 5, 3, dtype=torch.float64)
    total = 0.0
    for i in range(5):
        scores = [float(query[i] @ key[j]) / 0.3 for j in range(5)]
        total += -scores[i] + math.log(sum(math.exp(s) for s in scores))
    assert math.isclose(float(in_batch_info_nce(query, key, 0.3, ALONE)), total / 5, rel_tol=1e-9)


def test_shared_noise_is_the_same_on_every_worker() -> None:
    whole = sample_negative_indices(100, 20, draws(8))
    assert torch.equal(sample_negative_indices(100, 20, draws(8, slice(4, 8))), whole)
    assert whole.min() >= 0
    assert whole.max() < 100


def test_rows_start_at_the_first_embedding() -> None:
    bank = MemoryBank(6, 3)
    before, z, later = bank.bank.clone(), torch.randn(3, 3), torch.randn(2, 3)
    initialise_bank(bank, torch.tensor([2, 4, 2]), z, ALONE)
    torch.testing.assert_close(bank.bank[[2, 4]], unit(z[:2]))
    initialise_bank(bank, torch.tensor([4, 5]), later, ALONE)
    torch.testing.assert_close(bank.bank[[4, 5]], unit(torch.stack([z[1], later[1]])))
    assert torch.equal(bank.bank[[0, 1, 3]], before[[0, 1, 3]])


def test_remember_takes_the_first_of_twins_and_leaves_the_others() -> None:
    bank = MemoryBank(6, 3)
    before = bank.bank.clone()
    z = torch.randn(3, 3)
    update_bank(bank, torch.tensor([2, 4, 2]), z, 0.5, ALONE)
    torch.testing.assert_close(bank.bank[2], unit((0.5 * before[2] + 0.5 * unit(z)[0])[None])[0])
    torch.testing.assert_close(bank.bank[4], unit((0.5 * before[4] + 0.5 * unit(z)[1])[None])[0])
    assert torch.equal(bank.bank[[0, 1, 3, 5]], before[[0, 1, 3, 5]])
