"""``optuna.db``: the search for Optuna's own tools. Made from the journal, never read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import optuna

from methods.data.records import Split
from orchestrator.engine.journal import History
from orchestrator.folder import RunFolder
from orchestrator.strategies.sampler import Search
from orchestrator.study import Study


def write_optuna(study: Study, split: Split, history: History, folder: RunFolder) -> None:
    """The search's ended trials as an Optuna SQLite storage, so that nothing in it is left running."""
    search = Search(study.space(split.fewest_images()), study.seed)
    trials = [search.frozen(t) for t in history.search() if t.status != "running"]
    # SQLite writes to a file of this machine only.
    with tempfile.TemporaryDirectory(prefix="labelwise-optuna-") as place:
        file = Path(place) / "optuna.db"
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        stored = optuna.create_study(storage=storage, study_name=study.name, direction="maximize")
        stored.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()
        folder.storage.put(folder.OPTUNA, file.read_bytes())
