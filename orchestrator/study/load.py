"""Study files: found by path or by preset, read as plain YAML, changed by settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from methods.data.sources import names_data
from orchestrator.study.extensions import Allowed, replaced
from orchestrator.study.fields import StudyError
from orchestrator.study.study import Study

PRESETS = Path(__file__).resolve().parents[2] / "search_spaces" / "presets"


def load_study(path: str | Path, settings: Sequence[str] = (), imports: Sequence[str] = ()) -> Study:
    """Reads a study file, or a preset by name, and applies ``key=value`` settings (dots reach into mappings).

    What is neither but holds images becomes the default study on them.

    Args:
        path: of the file, the preset's name, or images: a folder, a zip, an npz or the name of a data set.
        settings: each replaces a field, and what the file says in other words about the same.
        imports: modules that may be imported where the study names code of one's own, ``module:Name``.
    Raises:
        StudyError: unreadable, unparsable or not a mapping; YAML tags are refused, so no file can run code.
    """
    if _is_data(path):
        return _study_of({"data": str(path)}, str(path), _name_of(path), settings, imports)
    file = find_study(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} cannot be read: {error}") from None
    return parse_study(text, str(file), file.stem, settings, imports)


def parse_study(text: str, file: str, name: str, settings: Sequence[str] = (), imports: Sequence[str] = ()) -> Study:
    """The study in a YAML text, as ``load_study``.

    Args:
        text: the YAML.
        file: what errors call it.
        name: of the study where the text gives none.
        settings, imports: as for ``load_study``.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"{file} must be plain YAML, but {_yaml_problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{file} must be plain YAML, but a value in it cannot be: {error}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{file} must hold a mapping of study fields such as 'data: digits', got {type(raw).__name__}")
    return _study_of(raw, file, name, settings, imports)


def _study_of(raw: dict[str, Any], file: str, name: str, settings: Sequence[str], imports: Sequence[str]) -> Study:
    for setting in settings:
        _apply(raw, setting)
    raw.setdefault("name", name)
    for key in raw:
        if not isinstance(key, str):
            raise StudyError(f"{file}: a study's fields are words, got {key!r}")
    return Study(**replaced(raw, Allowed(frozenset(imports))))


def find_study(path: str | Path) -> Path:
    """The study file, or the preset of that name."""
    file = Path(path)
    if file.is_file():
        return file
    preset = PRESETS / f"{path}.yaml"
    if preset.is_file():
        return preset
    known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    raise StudyError(
        f"there is no study {path}; give a study file (YAML), a ready-made study ({known}), or images: a folder, a .zip, an"
        " .npz or a data set's name such as digits"
    )


def _is_data(path: str | Path) -> bool:
    """Whether it stands for images, and for no study. Raises StudyError on a run folder, which holds some too."""
    if (PRESETS / f"{path}.yaml").is_file() or not names_data(str(path)):
        return False
    if Path(path).is_dir() and (Path(path) / "study.yaml").is_file():
        raise StudyError(f"{path} is a run folder; go on with 'labelwise resume {path}', or give the images themselves")
    return True


def _name_of(path: str | Path) -> str:
    """What a study on these images is called, and its run folder with it."""
    place = Path(path).expanduser().resolve()
    return (place.name if place.is_dir() else place.stem) or "study"


def _apply(raw: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise StudyError(f"--set takes key=value, got {setting!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise StudyError(f"--set {key} needs a plain YAML value, got {text!r}") from None
    head, _, rest = key.partition(".")
    if rest and isinstance(raw.get(head), dict | None):
        raw[head] = {**(raw.get(head) or {}), rest: value}
    else:
        raw[key] = value
    _drop_rival(raw, key)


def _drop_rival(raw: dict[str, Any], key: str) -> None:
    """A setting replaces what the file says in other words about the same."""
    budget = raw.get("budget")
    if key == "trials" and isinstance(budget, dict):
        raw["budget"] = {name: amount for name, amount in budget.items() if name != "trials"}
    rivals = {"budget.trials": "trials", "seconds": "epochs", "epochs": "seconds"}
    if key == "budget" and isinstance(budget, dict) and "trials" in budget:
        rivals["budget"] = "trials"
    if key in rivals:
        raw.pop(rivals[key], None)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]
