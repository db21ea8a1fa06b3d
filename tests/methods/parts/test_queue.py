"""Queue and bank against lists."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from methods.parts.queue import MemoryBank, Queue
from search_spaces.domains import UserError


@pytest.mark.parametrize(("size", "batches"), [(7, [3, 3, 3, 3, 3]), (8, [4, 4, 4]), (5, [5, 2, 5, 1]), (6, [6, 6])])
def test_a_queue_replaces_its_oldest_keys_and_wraps_exactly(size: int, batches: list[int]) -> None:
    queue = Queue(size, 2)
    places = [row.tolist() for row in queue.keys]
    at = 0
    for number, b in enumerate(batches):
        keys = torch.randn(b, 2, generator=torch.Generator().manual_seed(number))
        queue.push(keys)
        for row in keys.tolist():
            places[at] = row
            at = (at + 1) % size
        assert queue.keys.tolist() == places
        assert queue.pointer.item() == at


def test_a_queue_starts_with_unit_vectors_of_its_generator() -> None:
    one, two = (Queue(9, 4, torch.Generator().manual_seed(s)).keys for s in (0, 0))
    torch.testing.assert_close(one.norm(dim=1), torch.ones(9))
    assert torch.equal(one, two)
    assert not torch.equal(one, Queue(9, 4, torch.Generator().manual_seed(1)).keys)


def test_a_batch_longer_than_the_queue_is_refused() -> None:
    with pytest.raises(UserError, match="got 4 keys for 5 images"):
        Queue(4, 2).push(torch.ones(5, 2))
    with pytest.raises(UserError, match="at least 1 key, got 0"):
        Queue(0, 2)


def test_a_queue_resumes_from_its_state() -> None:
    queue = Queue(5, 2)
    queue.push(torch.ones(3, 2))
    other = Queue(5, 2)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.push(torch.full((3, 2), 2.0, requires_grad=True))
    assert torch.equal(queue.keys, other.keys)
    assert not queue.keys.requires_grad


def test_a_bank_moves_the_entries_it_is_given_and_no_others() -> None:
    bank = MemoryBank(6, 3)
    before, z = bank.bank.clone(), torch.randn(2, 3)
    bank.update(torch.tensor([4, 1]), z, momentum=0.5)
    expected = F.normalize(0.5 * before[[4, 1]] + 0.5 * F.normalize(z, dim=1), dim=1)
    torch.testing.assert_close(bank.read(torch.tensor([4, 1])), expected)
    torch.testing.assert_close(bank.bank[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    bank.update(torch.tensor([0]), z[:1], momentum=0.0)
    torch.testing.assert_close(bank.bank[0], F.normalize(z[0], dim=0))


def test_a_bank_is_read_by_indices_of_any_shape() -> None:
    bank = MemoryBank(6, 3)
    index = torch.tensor([[0, 5], [2, 2]])
    found = bank.read(index)
    assert found.shape == (2, 2, 3)
    assert torch.equal(found[1, 0], bank.bank[2])
    torch.testing.assert_close(bank.bank.norm(dim=1), torch.ones(6))
