"""The seams in the middle of the house, read from the syntax tree: who may know a task by name, and how long a file may be."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 350
"""Lines of a source file of the orchestrator."""

PRIVATE = 20
"""Accesses to private names of the product that tests stay below."""

KINDS = ("task", "protocol", "scoring")
DECLARED = Path("orchestrator/study/task.py")
"""Where the fields of a study's task are declared."""

SOURCES = sorted((ROOT / "orchestrator").rglob("*.py"))


def by_name(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a task or protocol with a name, or ask for its name in order to compare it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            text = [ast.unparse(side) for side in sides]
            named = any(re.search(rf"\b({'|'.join(KINDS)})(\(\))?(\.name)?$", side) for side in text)
            written = any(isinstance(c, ast.Constant) and isinstance(c.value, str) for s in sides for c in ast.walk(s))
            if named and (written or any(side.endswith(".name") for side in text)):
                yield node.lineno
        elif isinstance(node, ast.Match) and re.search(rf"\b({'|'.join(KINDS)})(\.name)?$", ast.unparse(node.subject)):
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_branches_on_a_tasks_or_protocols_name(path: Path) -> None:
    assert list(by_name(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("if study.task == 'few_shot': pass", [1]),
        ("x = setup.protocol.name != 'few_shot'", [1]),
        ("if self.scoring().name in ('a', 'b'): pass", [1]),
        ("match study.task:\n    case 'x': pass", [1]),
        ("if isinstance(study.task, Task): pass\ny = task is None", []),
    ],
)
def test_a_branch_on_a_name_is_seen(source: str, lines: list[int]) -> None:
    assert list(by_name(ast.parse(source))) == lines


def test_few_shot_is_said_only_where_the_studys_field_is_declared() -> None:
    said = []
    for path in SOURCES:
        if path.relative_to(ROOT) == DECLARED:
            continue
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        said += [f"{path.relative_to(ROOT)}:{t.start[0]}" for t in tokens if re.search(r"\bfew_shot\b", t.string)]
    assert said == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_tests_reach_for_few_private_names() -> None:
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} .{node.attr}")
    assert len(found) < PRIVATE, "\n".join(found)
