"""What a study is: its fields, each with its owner, and how it is read and checked."""

from methods.tasks import FewShotTask
from orchestrator.study.budget import Spending
from orchestrator.study.extensions import Allowed, Extension
from orchestrator.study.fields import StudyError
from orchestrator.study.health import COLLAPSE, Limit
from orchestrator.study.load import PRESETS, find_study, load_study, parse_study
from orchestrator.study.selection import IN_PYTHON, ModelCost, Selection
from orchestrator.study.study import Study

__all__ = [
    "COLLAPSE",
    "IN_PYTHON",
    "PRESETS",
    "Allowed",
    "Extension",
    "FewShotTask",
    "Limit",
    "ModelCost",
    "Selection",
    "Spending",
    "Study",
    "StudyError",
    "find_study",
    "load_study",
    "parse_study",
]
