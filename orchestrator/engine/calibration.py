"""How the winner's confidences are calibrated: on its out-of-fold answers, which no test image has a part in."""

from __future__ import annotations

import numpy as np
import torch

from methods.protocols.confidence import fit_scaling
from orchestrator.engine.events import Calibrated
from orchestrator.engine.finalists import Finalist
from orchestrator.engine.records import SlotSetup
from orchestrator.folder import RunFolder, load_tensors


def calibrate(best: Finalist, shared: SlotSetup) -> Calibrated | None:
    """What calibrates the winner's exported model.

    All its folds' logits are fitted together; an image that several trainings answered for counts once. None where there are
    no answers of just the classifier that is exported: protocols that ask another one, and tasks without fixed classes.
    """
    folder = RunFolder(shared.storage)
    keys = [folder.trial(trial.spec.key, "answers.pt") for trial in best.judged]
    if not shared.protocol.asks_exported or not keys or not all(folder.exists(key) for key in keys):
        return None
    kept = [load_tensors(shared.storage, key, "cpu") for key in keys]
    index, label, logits = (torch.cat([each[name] for each in kept]).numpy() for name in ("index", "label", "logits"))
    _, place, count = np.unique(index, return_inverse=True, return_counts=True)
    return Calibrated(fit_scaling(logits.astype(np.float64), label, 1 / count[place]))
