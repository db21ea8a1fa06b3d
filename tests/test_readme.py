"""The README is true: its Python runs as it stands, its method table is the catalogue's, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator import Study
from orchestrator.cli import app
from orchestrator.readme import README, with_table

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


def test_the_method_table_is_the_catalogues() -> None:
    assert with_table(TEXT) == TEXT, "run 'python -m orchestrator.readme'"


def test_the_study_example_is_valid(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", TEXT, flags=re.S)
    assert block is not None
    Study(**yaml.safe_load(block.group(1)))


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"^labelwise (\w+)", TEXT, flags=re.M))
    assert named == {command.callback.__name__ for command in app.registered_commands if command.callback}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_python_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(BLOCKS[number], encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
