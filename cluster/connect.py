"""Connecting: start Ray on this machine, or join a cluster that runs already. What was joined is never shut down."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from cluster.address import Address, find_address, find_token, reach
from cluster.errors import ClusterError, one_line
from cluster.machine import Node, object_store_bytes, usable_cpus

Origin = Literal["started", "joined", "found"]

# What Ray should do unless the person's environment says otherwise; read when Ray or Tune starts.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # By default workers stand back (15): beside other work they would get a thirtieth of a core.
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a study mean what they say
    "RAY_AIR_NEW_OUTPUT": "0",  # no second progress table beside ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folder has its own sinks
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # our journal owns resume; Tune's snapshots would only cost time
}


@dataclass
class Connection:
    """A live connection to Ray; use it in a ``with`` statement or call close().

    Attributes:
        address: "local" or the cluster's address.
        origin: "started" here, "joined" by address, or "found" initialised in this process by somebody else.
        nodes: the machines that were alive when the connection was made.
        dashboard: its URL, None when there is none.
    """

    address: str
    origin: Origin
    nodes: tuple[Node, ...]
    dashboard: str | None = None
    _restore: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def close(self) -> None:
        """Ends what connect() began: stops a Ray that it started, leaves a cluster that it joined, else nothing. Idempotent."""
        if self.origin != "found":
            import ray

            ray.shutdown()
            set_authentication(self._restore)
        self.origin = "found"

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _set_environment(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sets (or, for None, removes) variables; gives back what they were."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


def set_authentication(values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Sets RAY_AUTH_ variables, also for a Ray that has read its settings before; gives back the old values."""
    before = _set_environment(values)
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    return before


def _alive_nodes() -> tuple[Node, ...]:
    import ray

    alive = [entry["Resources"] for entry in ray.nodes() if entry["Alive"]]
    return tuple(Node(r.get("CPU", 0.0), r.get("GPU", 0.0), int(r.get("memory", 0))) for r in alive)


def _found(address: str | None) -> Connection:
    """The Ray that this process is connected to already."""
    import ray

    mine = ray.get_runtime_context().gcs_address
    if address is not None and (address == "local" or find_address(address).port != int(mine.rpartition(":")[2])):
        raise ClusterError(f"this process is connected to Ray at {mine} already, not to {address}; call ray.shutdown() first")
    return Connection(mine, "found", _alive_nodes())


def _join(address: Address, options: dict[str, Any]) -> Connection:
    import ray

    if address.kind == "http":
        raise ClusterError(f"{address} takes jobs only; use 'labelwise submit', or join at host:6379 or ray://host:10001")
    restore = set_authentication({"RAY_AUTH_MODE": "token"}) if reach(address) else {}
    try:
        context = ray.init(address=str(address), **options)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        set_authentication(restore)
        hint = ""
        if address.kind == "client":
            hint = "; Ray Client needs a head node started with --runtime-env-agent-port, 'labelwise submit' does not"
        raise ClusterError(f"joining the cluster at {address} failed: {one_line(error)}{hint}") from error
    return Connection(str(address), "joined", _alive_nodes(), context.dashboard_url or None, restore)


def _start(cpus: int | None, gpus: int | None, store: int | None, dashboard: bool, options: dict[str, Any]) -> Connection:
    import ray

    if cpus is not None and cpus < 1:
        raise ClusterError(f"cpus must be at least 1, got {cpus}")
    wanted: dict[str, str | None] = {}
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        wanted = {"RAY_AUTH_MODE": "token"}
        if find_token() is None and not dashboard:
            # A token for this run alone. Ray would write a lasting one, readable by everybody, into the home folder.
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    restore = set_authentication(wanted)
    try:
        context = ray.init(
            address="local",
            num_cpus=cpus if cpus is not None else usable_cpus(),
            num_gpus=gpus,
            object_store_memory=store if store is not None else object_store_bytes(),
            include_dashboard=dashboard,
            **options,
        )
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()
        set_authentication(restore)
        raise ClusterError(f"starting Ray here failed: {one_line(error)}; 'labelwise doctor' shows what is missing") from error
    return Connection("local", "started", _alive_nodes(), context.dashboard_url or None, restore)


def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    object_store_memory: int | None = None,
    dashboard: bool = False,
    quiet: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Connects this process to Ray.

    Args:
        address: None joins RAY_ADDRESS when it is set (so inside a Ray job the job's cluster), else starts Ray here.
            ``local`` always starts it here; ``auto``, ``host:port`` and ``ray://host:port`` join.
        cpus, gpus, object_store_memory: of a Ray started here; None measures the machine. Refused when joining.
        dashboard: serve Ray's dashboard for a Ray started here.
        quiet: errors of Ray only, and no output of its workers on this terminal.
        environment: further variables to set before Ray starts, unless they are set already.

    Raises:
        ClusterError: nobody answers at the address (within seconds), the token is missing or wrong, Ray does not start.
    """
    for name, value in {**ENVIRONMENT, **(environment or {})}.items():
        os.environ.setdefault(name, value)
    import ray

    if address == "":
        raise ClusterError("the address is empty; leave it out to run on this machine")
    if ray.is_initialized():
        return _found(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR if quiet else logging.INFO, "log_to_driver": not quiet}
    if address is None:
        address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return _start(cpus, gpus, object_store_memory, dashboard, options)
    given = {"cpus": cpus, "gpus": gpus, "object_store_memory": object_store_memory}
    fixed = [name for name, amount in given.items() if amount is not None]
    if fixed:
        raise ClusterError(f"{fixed[0]} is for a Ray started here, but {address} names a running cluster; leave out one")
    return _join(find_address(address), options)
