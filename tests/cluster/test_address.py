from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.address import Address, Token, find_address, find_token, parse_address, reach
from cluster.errors import ClusterError, one_line


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:6379", Address("head", "10.0.0.1", 6379)),
        (" head:6379 ", Address("head", "head", 6379)),
        ("ray://head", Address("client", "head", 10001)),
        ("ray://head:10002", Address("client", "head", 10002)),
        ("http://head", Address("http", "head", 8265)),
        ("http://head:80/", Address("http", "head", 80)),
        ("https://head:443", Address("http", "head", 443, secure=True)),
        ("[::1]:6379", Address("head", "::1", 6379)),
        ("ray://[::1]", Address("client", "::1", 10001)),
    ],
)
def test_forms_of_an_address(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "head", ":6379", "head:", "head:zero", "head:0", "head:65536", "ray://", "ftp://head:1", "a/b:1", "a@b:1"],
)
def test_no_address(text: str) -> None:
    with pytest.raises(ClusterError, match=r"got|unknown scheme") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_auto_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert find_address("auto") == Address("head", "head", 6379)
    assert find_address("other:1") == Address("head", "other", 1)


def test_auto_without_a_cluster(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    with pytest.raises(ClusterError, match="no Ray cluster was started on this machine"):
        find_address("auto")


def test_the_token_is_found_where_ray_looks(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() is None
    kept = no_ray_settings / ".ray" / "auth_token"
    kept.parent.mkdir()
    kept.write_text("from-home\n")
    assert find_token() == Token("from-home", str(kept))
    named = tmp_path / "token"
    named.write_text("from-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert find_token() == Token("from-path", str(named))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-environment")
    token = find_token()
    assert token == Token("from-environment", "RAY_AUTH_TOKEN")
    assert "from-environment" not in repr(token)


def test_a_named_token_file_must_be_readable(no_ray_settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(ClusterError, match="cannot be read"):
        find_token()
    (tmp_path / "missing").touch()
    with pytest.raises(ClusterError, match="is empty"):
        find_token()


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port where somebody listens and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_stranger_is_noticed_within_seconds(no_ray_settings: Path, mute_port: int, form: str) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match="does not speak Ray") as caught:
        reach(parse_address(form.format(mute_port)))
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}", "no-such-host.invalid:{}"])
def test_nobody_answers(no_ray_settings: Path, form: str) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match="no Ray cluster answers at") as caught:
        reach(parse_address(form.format(1)))
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_foreign_errors_on_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert len(one_line("x" * 1000)) == 300
