"""What a study is: its fields, each with its owner, and how it is read and checked."""

from orchestrator.study.study import (
    COLLAPSE,
    IN_PYTHON,
    PRESETS,
    FewShotTask,
    Limit,
    Selection,
    Study,
    StudyError,
    find_study,
    load_study,
    parse_study,
)

__all__ = [
    "COLLAPSE",
    "IN_PYTHON",
    "PRESETS",
    "FewShotTask",
    "Limit",
    "Selection",
    "Study",
    "StudyError",
    "find_study",
    "load_study",
    "parse_study",
]
