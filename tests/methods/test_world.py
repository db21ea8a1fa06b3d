"""Two real workers with half of the batch each must equal one worker with all of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from methods.world import GlobalBatchNorm, World, synchronise_batchnorm

TOTAL = 12


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batchnorm(net: nn.Sequential, x: Tensor, target: Tensor, world: World) -> dict[str, Tensor]:
    """Two training steps and an evaluation of a net with BatchNorm on this worker's rows."""
    rows = world.rows(TOTAL)
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    found = {}
    synchronise_batchnorm(net, world)
    for step in range(2):
        mine = (x[rows] * (step + 1)).requires_grad_()
        net.zero_grad()
        out = net(mine)
        ((out - target[rows]) ** 2).mean().backward()
        world.average_gradients(list(net.parameters()))
        assert mine.grad is not None
        found[f"out{step}"] = world.gather(out.detach())
        # This worker's loss is a mean over its rows: the global loss is the mean over workers.
        found[f"input_grad{step}"] = world.gather(mine.grad) / world.size
        found.update({f"grad{step}.{n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    found.update({f"state.{n}": v for n, v in net.state_dict().items()})
    net.eval()
    found["eval"] = world.gather(net(x[rows]).detach())
    return found


def cases(world: World) -> dict[str, Tensor]:
    """Everything compared below; values that are means over rows are averaged over the workers first."""
    x, rows = _draw(TOTAL, 3), world.rows(TOTAL)
    found: dict[str, Tensor] = {}
    losses = {
        "gather": lambda z: (z @ world.gather(z).T).tanh().mean(),
        "gather_twice": lambda z: (world.gather(z).exp().sum(0) * world.gather(z * z).mean(0)).sum(),
        "sum": lambda z: (world.sum(z.sum(0)) ** 3).sum() + z.mean(),
        "mean": lambda z: (z * world.mean(z.square().mean(0))).mean(),
    }
    for name, loss in losses.items():
        weight = nn.Parameter(_draw(3, 4, seed=1))
        value = loss(x[rows] @ weight)
        value.backward()
        world.average_gradients([weight])
        assert weight.grad is not None
        found[f"{name}.value"] = world.mean(value.detach())
        found[f"{name}.grad"] = weight.grad
    found["integers"] = world.gather(torch.arange(TOTAL)[rows])
    found["strided"] = world.gather(x.T.contiguous().T[rows])

    some, all_ = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    value = all_.sum() * 2.0
    if world.rank == 0:
        value = value + 5.0 * some.sum()
    value.backward()
    still = nn.Parameter(torch.ones(2), requires_grad=False)
    world.average_gradients([some, all_, still])
    assert still.grad is None
    assert some.grad is not None
    assert all_.grad is not None
    found["unused"] = torch.cat([some.grad * world.size, all_.grad])

    flat = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2), nn.BatchNorm1d(2, affine=False))
    image = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))
    maps = (_draw(TOTAL, 2, 6, 5, seed=2) + 3).to(memory_format=torch.channels_last)
    found.update({f"flat.{k}": v for k, v in _batchnorm(flat, x, _draw(TOTAL, 2, seed=3), world).items()})
    found.update({f"image.{k}": v for k, v in _batchnorm(image, maps, _draw(TOTAL, 3, 4, 3, seed=4), world).items()})
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    run = runpy.run_path(str(Path(__file__).with_name("two_workers.py")))["run"]
    return run(__file__, tmp_path_factory.mktemp("world"))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_workers_equal_one(two: list[dict[str, Tensor]], rank: int) -> None:
    one = cases(World())
    assert two[rank].keys() == one.keys()
    assert len(one) > 40
    for name, expected in one.items():
        torch.testing.assert_close(two[rank][name], expected, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_gathered_rows_come_in_the_global_order(two: list[dict[str, Tensor]]) -> None:
    assert two[1]["integers"].tolist() == list(range(TOTAL))


def test_a_world_of_one_changes_nothing() -> None:
    world, x = World(), _draw(4, 3).requires_grad_()
    assert world.sum(x) is x
    assert world.gather(x) is x
    assert world.mean(x) is x
    assert world.rows(4) == slice(0, 4)
    net = nn.Sequential(nn.BatchNorm1d(3))
    synchronise_batchnorm(net, world)
    assert type(net[0]) is nn.BatchNorm1d


def test_rows_partition_the_batch() -> None:
    places = torch.arange(12)
    parts = [places[World(rank, 3).rows(12)] for rank in range(3)]
    assert torch.equal(torch.cat(parts), places)


def test_synchronising_keeps_parameters_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: id(value) for name, value in [*net.named_parameters(), *net.named_buffers()]}
    keys = list(net.state_dict())
    synchronise_batchnorm(net, World(0, 2))
    assert isinstance(net[1], GlobalBatchNorm)
    assert {name: id(value) for name, value in [*net.named_parameters(), *net.named_buffers()]} == before
    assert list(net.state_dict()) == keys


def test_global_batchnorm_in_evaluation_needs_no_workers() -> None:
    net = nn.BatchNorm1d(3)
    net.running_mean = torch.tensor([1.0, 2.0, 3.0])
    x = _draw(5, 3)
    expected = net.eval()(x)
    synchronise_batchnorm(nn.ModuleList([net]), World(0, 2))
    torch.testing.assert_close(net(x), expected)
