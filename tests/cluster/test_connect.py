from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster.address import parse_address, reach
from cluster.connect import connect
from cluster.errors import ClusterError
from cluster.plan import plan_resources


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no Ray cluster answers at ray://127.0.0.1:1"),
        ("http://127.0.0.1:1", "takes jobs only"),
        ("nonsense", "an address needs a host and a port"),
        ("", "the address is empty"),
    ],
)
def test_bad_addresses_fail_fast_in_one_line(no_ray_settings: Path, address: str, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=says) as caught:
        connect(address)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_inside_a_job_the_jobs_cluster_is_meant(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        connect(None)


def test_a_running_cluster_has_its_own_cpus(no_ray_settings: Path) -> None:
    with pytest.raises(ClusterError, match="cpus is for a Ray started here"):
        connect("127.0.0.1:1", cpus=2)
    with pytest.raises(ClusterError, match="cpus must be at least 1, got 0"):
        connect("local", cpus=0)


@pytest.mark.slow
@pytest.mark.ray
def test_starts_and_stops_a_local_ray(no_ray_settings: Path) -> None:
    import ray

    with connect(None, cpus=1, object_store_memory=100 * 1024**2) as connection:
        assert (connection.origin, connection.cpus, connection.dashboard) == ("started", 1, None)
        assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
        assert ray.get(ray.remote(lambda: os.environ["RAY_CHDIR_TO_TRIAL_DIR"]).remote()) == "0"
        with connect(None) as again:
            assert again.origin == "found"
        assert ray.is_initialized()
        with pytest.raises(ClusterError, match=r"connected to Ray at .* already"):
            connect("127.0.0.1:1")
    assert not ray.is_initialized()
    # The token lived in this run alone: nothing in the home folder, nothing left in the environment.
    assert list(no_ray_settings.iterdir()) == []
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.slow
@pytest.mark.ray
def test_joins_a_cluster_and_leaves_it_running(with_token, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    import ray
    from ray.util.placement_group import placement_group

    with connect(with_token.address) as connection:
        assert (connection.origin, connection.cpus) == ("joined", 4)
        assert ray.get(ray.remote(lambda: 2**5).remote()) == 32
        # A plan is worth what Ray can place: two slots of two workers with their drivers, all at a time.
        plan = plan_resources(connection.nodes, workers_per_trial=2, slots=2)
        drivers = [placement_group([plan.trial_resources]) for _ in range(2)]
        groups = [placement_group([plan.worker_resources] * 2) for _ in range(2)]
        assert all(group.wait(30) for group in [*drivers, *groups])
    assert not ray.is_initialized()
    assert "RAY_AUTH_MODE" not in os.environ
    assert reach(parse_address(with_token.address)) is not None
    monkeypatch.setenv("RAY_ADDRESS", with_token.address)
    with connect(None) as connection:
        assert (connection.origin, connection.address) == ("joined", with_token.address)


@pytest.mark.slow
@pytest.mark.ray
def test_token_missing_or_wrong(no_ray_settings: Path, head, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    start = time.monotonic()
    for address in (head.address, head.dashboard):
        with pytest.raises(ClusterError, match="asks for a token and none was found here; copy"):
            reach(parse_address(address))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ClusterError, match="refuses the token from RAY_AUTH_TOKEN; use"):
            reach(parse_address(address))
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(ClusterError, match="which RAY_AUTH_MODE forbids here"):
            reach(parse_address(address))
        monkeypatch.delenv("RAY_AUTH_MODE")
        monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(ClusterError, match="asks for a token") as caught:
        connect(head.address)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
