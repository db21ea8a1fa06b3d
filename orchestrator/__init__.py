"""What a study is, how it runs, and what it leaves behind."""

from orchestrator.result import Best, Result
from orchestrator.run import resume, run
from orchestrator.study import FewShotTask, Selection, Study

__all__ = ["Best", "FewShotTask", "Result", "Selection", "Study", "resume", "run"]
