"""Addresses of Ray clusters: what a person may write, whether somebody answers there, and with which token.

Ray itself waits 20 to 80 seconds on a wrong token or a dead address and then ends the process, so every address is
asked first: one TCP connection, then one small request that every Ray head answers, first without a token and, when the
cluster asks for one, with the person's own. The token is sent only to an address that the person named and that asked for it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from cluster.errors import ClusterError, one_line

Kind = Literal["head", "client", "http"]
Answer = Literal["ok", "unauthorised", "silent"]

TIMEOUT = 3.0  # seconds that one question to an address may take
_DEFAULT_PORTS: dict[Kind, int | None] = {"head": None, "client": 10001, "http": 8265}
_FORMS = "write host:6379, ray://host:10001, http://host:8265 or auto"
_QUESTIONS = {"head": "/ray.rpc.NodeInfoGcsService/GetClusterId", "client": "/ray.rpc.RayletDriver/ClusterInfo"}


@dataclass(frozen=True)
class Address:
    """Where a cluster answers.

    Attributes:
        kind: "head" is the control port, "client" the Ray Client port (``ray://``), "http" the dashboard (jobs only).
        host, port: where.
        secure: https instead of http.
    """

    kind: Kind
    host: str
    port: int
    secure: bool = False

    def __str__(self) -> str:
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        scheme = {"head": "", "client": "ray://", "http": "https://" if self.secure else "http://"}[self.kind]
        return scheme + where


@dataclass(frozen=True)
class Token:
    """An authentication token and where it was found. The value never appears in messages."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


def parse_address(text: str) -> Address:
    """Reads ``host:port``, ``ray://host[:port]`` and ``http[s]://host[:port]``.

    Raises:
        ClusterError: the text is none of these.
    """
    scheme, found, rest = text.strip().partition("://")
    if not found:
        scheme, rest = "", text.strip()
    kinds: dict[str, Kind] = {"": "head", "ray": "client", "http": "http", "https": "http"}
    if scheme not in kinds:
        raise ClusterError(f"unknown scheme in address {text!r}; {_FORMS}")
    rest = rest.rstrip("/")
    host, colon, digits = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, digits = rest, ""
    port = int(digits) if digits.isascii() and digits.isdigit() else _DEFAULT_PORTS[kinds[scheme]] if not digits else None
    host = host.removeprefix("[").removesuffix("]")
    if not host or port is None or not 0 < port < 65536 or any(c in host for c in "/@?# "):
        raise ClusterError(f"an address needs a host and a port between 1 and 65535, got {text!r}; {_FORMS}")
    return Address(kinds[scheme], host, port, secure=scheme == "https")


def find_address(text: str) -> Address:
    """Like parse_address, and ``auto``: RAY_ADDRESS, or the cluster that ``ray start`` started on this machine last.

    Raises:
        ClusterError: no such form, or ``auto`` found no cluster.
    """
    if text != "auto":
        return parse_address(text)
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto"):
        return parse_address(named)
    from ray._private.services import find_bootstrap_address

    started = find_bootstrap_address(None)
    if not started:
        raise ClusterError("no Ray cluster was started on this machine; start one with 'ray start --head', or name its address")
    return parse_address(started)


def find_token() -> Token | None:
    """The person's token, from where Ray looks: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.

    Raises:
        ClusterError: RAY_AUTH_TOKEN_PATH names a file that cannot be read, or is empty.
    """
    value = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if value:
        return Token(value, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        value = path.read_text().strip()
    except OSError as error:
        if named:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read: {error.strerror}") from error
        return None
    if not value and named:
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {path}, which is empty; put the cluster's token there")
    return Token(value, str(path)) if value else None


def _ask_http(address: Address, token: Token | None) -> Answer:
    request = Request(f"{address}/api/version")
    if token:
        request.add_header("Authorization", f"Bearer {token.value}")
    try:
        # Like gRPC below, no proxy: a proxy's own answer would be taken for the cluster's.
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT) as reply:
            return "ok" if b"ray_version" in reply.read(4096) else "silent"
    except HTTPError as error:
        return "unauthorised" if error.code in (401, 403) else "silent"
    except (URLError, OSError, ValueError):
        return "silent"


def _ask_grpc(address: Address, token: Token | None) -> Answer:
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(f"{address.host}:{address.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_QUESTIONS[address.kind])
        try:
            ask(b"", timeout=TIMEOUT, metadata=[("authorization", f"Bearer {token.value}")] if token else None)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                return "unauthorised"
            # The client port answers an empty question with "not found": it is the right port all the same.
            return "ok" if address.kind == "client" and code is grpc.StatusCode.NOT_FOUND else "silent"
    return "ok"


def _ask(address: Address, token: Token | None) -> Answer:
    return _ask_http(address, token) if address.kind == "http" else _ask_grpc(address, token)


def reach(address: Address) -> Token | None:
    """Makes sure that a Ray cluster answers at ``address``, in at most three questions of TIMEOUT seconds.

    Returns:
        The token that the cluster accepted, None when it asks for none.

    Raises:
        ClusterError: nobody answers, somebody else answers, or the token is missing or wrong.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=TIMEOUT).close()
    except OSError as error:
        why = "timed out" if isinstance(error, TimeoutError) else error.strerror or one_line(error)
        raise ClusterError(
            f"no Ray cluster answers at {address} ({why.lower()}); check the address, the firewall and that the head node runs"
        ) from error
    answer = _ask(address, None)
    if answer == "ok":
        return None
    if answer == "silent":
        raise ClusterError(f"something listens at {address}, but it does not speak Ray; {_FORMS}")
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ClusterError(f"the cluster at {address} asks for a token, which RAY_AUTH_MODE forbids here; unset it")
    token = find_token()
    if token is None:
        raise ClusterError(
            f"the cluster at {address} asks for a token and none was found here; "
            "copy the head node's ~/.ray/auth_token to this machine or set RAY_AUTH_TOKEN"
        )
    if _ask(address, token) != "ok":
        raise ClusterError(
            f"the cluster at {address} refuses the token from {token.source}; "
            "use the one of its head node ('ray get-auth-token' prints it there)"
        )
    return token
