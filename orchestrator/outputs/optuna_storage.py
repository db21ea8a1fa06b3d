"""``optuna.db``: the search for Optuna's own tools. Made from the journal, never read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import optuna

from orchestrator.engine.history import History
from orchestrator.folder import RunFolder
from orchestrator.samplers.frozen import frozen
from search_spaces.space import Space


def write_optuna(name: str, space: Space, history: History, folder: RunFolder) -> None:
    """The search's ended trials as an Optuna SQLite storage, so that nothing in it is left running."""
    trials = [frozen(space, t) for t in history.search() if t.status != "running"]
    # SQLite writes to a file of this machine only.
    with tempfile.TemporaryDirectory(prefix="labelwise-optuna-") as place:
        file = Path(place) / "optuna.db"
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        stored = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        stored.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()
        folder.storage.put(folder.OPTUNA, file.read_bytes())
