"""The ready-made studies are valid studies."""

from __future__ import annotations

import pytest

from orchestrator.study import PRESETS, load_study

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def test_there_are_presets() -> None:
    assert "demo" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_loads_by_name_as_a_study(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.trials >= len(study.methods)
    for method in study.method_names:
        assert study.space().defaults(method).values
