"""Images through networks a batch at a time: in several threads as in one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.data.records import ArrayImages
from methods.parts.modes import threads
from methods.protocols.embeddings import FORWARD_BATCH, logits_of, run_over

IMAGES = ArrayImages(np.random.default_rng(0).integers(0, 256, (5 * FORWARD_BATCH + 3, 8, 8, 3), dtype=np.uint8))
INDEX = np.random.default_rng(1).permutation(len(IMAGES.array))[: 4 * FORWARD_BATCH + 1]


class Watched(nn.Module):
    """Notes in which threads it runs, and how many images it is given."""

    def __init__(self, layer: str | None = None) -> None:
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(192, 4)
        self.seen: set[int] = set()
        self.most = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(threading.get_ident())
        self.most = max(self.most, len(images))
        assert not torch.is_grad_enabled()
        result: Tensor = self.linear(images.flatten(1).float())
        return result


@pytest.mark.parametrize("count", [1, 2])
def test_threads_change_no_answer(count: int) -> None:
    net = Watched()
    with torch.no_grad():
        right = net.linear(torch.from_numpy(IMAGES.array[INDEX]).permute(0, 3, 1, 2).flatten(1).float())
    with threads(count):
        found = logits_of(net, IMAGES, INDEX)
        assert torch.get_num_threads() == count
    torch.testing.assert_close(found, right)
    assert net.most == FORWARD_BATCH


def test_what_shares_hooks_stays_in_one_thread() -> None:
    """A predictor that reads a layer catches its map by a hook, which every thread would see."""
    net = Watched("stage1")
    with threads(2):
        logits_of(net, IMAGES, INDEX)
    assert net.seen == {threading.get_ident()}


def test_threads_work_at_the_same_time() -> None:
    """Each waits inside for the other, so that neither would end alone."""
    both = threading.Barrier(2)

    def call(images: Tensor) -> Tensor:
        both.wait(timeout=60)
        return images.flatten(1)

    with threads(2):
        found = run_over(call, IMAGES, INDEX[: 4 * FORWARD_BATCH], torch.device("cpu"), parallel=True)
    assert found.shape == (4 * FORWARD_BATCH, 192)
