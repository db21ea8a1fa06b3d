"""The live table of a study: what runs, what leads, how far it is. Without a terminal, a line for each end."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.plan import ResourcePlan
from orchestrator.engine.events import Ended, Event, Selected, Tested
from orchestrator.engine.history import History
from orchestrator.engine.records import Trial
from orchestrator.folder import RunFolder
from orchestrator.outputs.leaderboard import ranked
from orchestrator.prepare import budgets_of
from orchestrator.study import Study

SHOWN = 8
"""Trials in the live table."""

_REFRESH = 4.0


class Progress:
    """Draws a study's events on ``stderr``, so that standard output stays free for results."""

    def __init__(self, folder: RunFolder, study: Study, plan: ResourcePlan) -> None:
        self.study = study
        self.started = time.monotonic()
        self.console = Console(stderr=True)
        self.console.print(
            Text(f"{study.name}: {_budget(study)}, {len(study.method_names)} methods -> {folder.storage.address}")
        )
        self.console.print(Text(plan.describe()))
        self._live = (
            Live(console=self.console, refresh_per_second=_REFRESH, transient=True) if self.console.is_terminal else None
        )
        if self._live is not None:
            self._live.start()

    def __call__(self, event: Event, history: History) -> None:
        if self._live is not None:
            self._live.update(Group(self._headline(history), table(history)))
            return
        match event:
            case Ended():
                self._say(describe(history.trials[event.key]))
            case Selected():
                self._say(f"search over; judging trials {event.trials}")
            case Tested():
                self._say(f"test of {event.score.key}: {event.score.value:.1%}")

    def _say(self, text: str) -> None:
        """One line, however long: this is for files and pipes, which have no width."""
        self.console.print(Text(f"{self._clock()}  {text}"), soft_wrap=True)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _headline(self, history: History) -> Text:
        ended = sum(t.status != "running" for t in history.search())
        wanted = "" if history.trials_wanted is None else f" of {history.trials_wanted}"
        finals = [t for t in history.trials.values() if t.spec.purpose != "search"]
        text = f"{self._clock()}  {ended}{wanted} trials ended"
        if finals:
            text += f", {sum(t.status != 'running' for t in finals)} of {len(finals)} trainings of the selection"
        return Text(text)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def _budget(study: Study) -> str:
    """What the study may spend, in a few words."""
    return ", ".join(str(budget) for budget in budgets_of(study, study.trials))


def describe(trial: Trial) -> str:
    """One line about a trial that ended."""
    value = "" if trial.value is None else f"  val {trial.value:.1%}"
    reason = f"  ({trial.reason})" if trial.reason else ""
    head = f"{trial.spec.key:<16} {trial.spec.title:<20} {trial.status:<8} epoch {trial.epochs}"
    return f"{head}{value}  {trial.seconds:.1f} s{reason}"


def table(history: History, shown: int = SHOWN) -> Table:
    """The leading trials and those that run."""
    view = Table(box=None, pad_edge=False)
    for name in ("trial", "method", "status", "epochs", "val", "seconds"):
        view.add_column(name, justify="left" if name in ("method", "status") else "right")
    jobs = [t for t in history.trials.values() if t.status == "running"]
    leading = [t for t in ranked(history) if t.status != "running"][: max(shown - len(jobs), 1)]
    for trial in (*leading, *jobs):
        value = "" if trial.value is None else f"{trial.value:.1%}"
        view.add_row(trial.spec.key, trial.spec.title, trial.status, str(trial.epochs), value, f"{trial.seconds:.1f}")
    return view
