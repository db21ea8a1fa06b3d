"""The arrows between the packages: search_spaces.domains <- methods <- orchestrator -> cluster."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "methods", "orchestrator", "cluster")

FORBIDDEN: dict[str, tuple[str, ...]] = {
    "methods": ("ray", "optuna", "orchestrator", "cluster"),
    "search_spaces": ("methods", "orchestrator", "cluster", "ray", "torch"),
    "cluster": ("methods", "orchestrator", "search_spaces"),
    "orchestrator": ("tests",),
}
"""What a package must not import anywhere, not even inside a function."""


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of all modules that the source imports; relative ones are resolved against ``package``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def turned_arrows(source: str, package: str, forbidden: tuple[str, ...]) -> list[str]:
    """Imports of ``source``, a module inside ``package``, whose first part is forbidden."""
    return [name for name in imported(ast.parse(source), package) if name.split(".")[0] in forbidden]


def sources(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_turns(package: str) -> None:
    found = list(sources(package))
    assert found
    wrong = {
        str(path.relative_to(ROOT)): names
        for path, inside in found
        if (names := turned_arrows(path.read_text(), inside, FORBIDDEN[package]))
    }
    assert wrong == {}


def test_methods_take_only_domains_from_search_spaces() -> None:
    for path, inside in sources("methods"):
        names = [n for n in imported(ast.parse(path.read_text()), inside) if n.split(".")[0] == "search_spaces"]
        assert all(n.startswith("search_spaces.domains") for n in names), (path, names)


def test_contracts_know_no_encoder_but_their_contract() -> None:
    """What builds encoders comes by ``Context``."""
    for module, forbidden in (("encoder", "methods."), ("contracts", "methods.parts.encoder")):
        tree = ast.parse((ROOT / "methods" / f"{module}.py").read_text())
        assert [name for name in imported(tree, "methods") if name.startswith(forbidden)] == []


def test_domains_need_the_standard_library_alone() -> None:
    tree = ast.parse((ROOT / "search_spaces" / "domains.py").read_text())
    assert {name.split(".")[0] for name in imported(tree, "search_spaces")} <= set(sys.stdlib_module_names)


def test_search_spaces_loads_domains_only() -> None:
    tree = ast.parse((ROOT / "search_spaces" / "__init__.py").read_text())
    names = [n for n in imported(tree, "search_spaces") if n.split(".")[0] not in sys.stdlib_module_names]
    assert names
    assert all(n.startswith("search_spaces.domains") for n in names)


def test_a_method_is_usable_without_ray_and_optuna() -> None:
    """In a fresh process, since this one may have loaded them for other tests."""
    code = (
        "import sys, methods.catalogue, methods.protocols, methods.training\n"
        "wrong = {'ray', 'optuna', 'orchestrator', 'cluster', 'learn2learn'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(wrong)}' if wrong else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray.tune as tune", ["ray.tune"]),
        ("def f():\n    from optuna import Study", ["optuna", "optuna.Study"]),
        ("from ..orchestrator import run", ["orchestrator", "orchestrator.run"]),
        ("import importlib\nimportlib.import_module('ray.train')", ["ray.train"]),
        ("import rayon, methods.optuna_free", []),
    ],
)
def test_a_turned_arrow_is_seen(source: str, expected: list[str]) -> None:
    assert (
        turned_arrows(source, "methods.selfsup" if ".." not in source else "methods", ("ray", "optuna", "orchestrator"))
        == expected
    )
