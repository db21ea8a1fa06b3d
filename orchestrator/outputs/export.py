"""``best/``: the winner's encoder and predictor with its configuration and scores."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml

from cluster.storage import Storage
from methods.parts.encoders import can_be_saved, origin_of, save_encoder, shown_at
from methods.parts.heads import save_predictor
from methods.parts.joined import JoinedEncoder
from methods.protocols.confidence import Scaling
from methods.protocols.contract import Trained
from orchestrator.engine.distillation import student_of
from orchestrator.engine.ensemble import Voting, voters
from orchestrator.engine.events import Distilled, Ensembled, Step
from orchestrator.engine.finalists import Finalist
from orchestrator.engine.records import SlotSetup, TrialSpec
from orchestrator.engine.trial import load_training, trained
from orchestrator.folder import RunFolder
from orchestrator.oneshot import distance_of

VIEWS = ("image", "mirrored")
"""Of each image, in the order in which they are embedded."""


def export(model: Trained, shared: SlotSetup, storage: Storage, prefix: str = "", scaling: Scaling | None = None) -> None:
    """Writes ``encoder.pt`` and, where the task has fixed classes, ``predictor.pt`` under the prefix.

    An encoder class of the user's own cannot be rebuilt from a file; its weights are in the checkpoint. ``scaling`` calibrates
    the predictor.
    """
    if not can_be_saved(model.encoder):
        return
    encoder = io.BytesIO()
    save_encoder(encoder, model.encoder)
    storage.put(f"{prefix}encoder.pt", encoder.getbuffer())
    predictor = shared.task.classifier(model, shared.split, shared.seed)
    if predictor is not None:
        file = io.BytesIO()
        tempered = None if scaling is None else scaling.layer()
        save_predictor(file, predictor, shared.split.labelled.data.classes, tempered)
        storage.put(f"{prefix}predictor.pt", file.getbuffer())


def joined(best: Finalist, shared: SlotSetup) -> Trained:
    """The winner's trainings of all seeds as one encoder that is compared by the distance it was trained by."""
    paths = [(t.spec, t.checkpoint) for t in best.tested if t.checkpoint is not None]
    models = [trained(load_training(shared, spec, path, torch.device("cpu"))) for spec, path in paths]
    if len(models) == 1 or not can_be_saved(models[0].encoder):
        return models[0]
    unit = distance_of(best.trial.spec.values) == "cosine"
    return Trained(JoinedEncoder([model.encoder for model in models], unit))


def _calibration(scaling: Scaling | None) -> dict[str, dict[str, float]]:
    """What the predictor's last layer does, for people."""
    return {} if scaling is None else {"calibration": asdict(scaling)}


@dataclass(frozen=True)
class Several:
    """What is exported in the winner's place: an ensemble, or where it was distilled the one model; and how it was tested."""

    board: Sequence[Finalist]
    ensembled: Ensembled
    distilled: Distilled | None
    steps: Sequence[Step]

    def model(self, shared: SlotSetup) -> Trained:
        """The model, on the CPU."""
        here = torch.device("cpu")
        if self.distilled is not None:
            return student_of(shared, self.distilled, here)
        return Voting(shared, here).together(voters(self.board, self.ensembled))


def export_best(
    best: Finalist,
    shared: SlotSetup,
    folder: RunFolder,
    join: bool = False,
    scaling: Scaling | None = None,
    several: Several | None = None,
) -> None:
    """``best/``, key by key and its scores last, which make it whole.

    Args:
        best: the winner.
        join: as in ``Selection``.
        scaling: what calibrates the model.
        several: what is exported in the winner's place, or None.
    """
    source, storage, here = best.exported, folder.storage, torch.device("cpu")
    assert source is not None
    assert source.checkpoint is not None
    if several is not None:
        model = several.model(shared)
    else:
        model = joined(best, shared) if join else trained(load_training(shared, source.spec, source.checkpoint, here))
    # The scores first: without them nobody takes an earlier winner's files for this one's.
    for key in (folder.SCORES, *storage.list(folder.BEST)):
        storage.delete(key)
    export(model, shared, storage, folder.BEST, scaling)
    storage.put(f"{folder.BEST}checkpoint.pt", storage.get(source.checkpoint))
    spec = source.spec
    config = {
        "method": spec.method,
        "encoder": encoder_facts(model, spec, shared),
        **_calibration(scaling),
        **dict(spec.values),
    }
    folder.write_text(f"{folder.BEST}config.yaml", yaml.safe_dump(config, sort_keys=False))
    scores = {
        "trial": spec.trial,
        "seed": spec.seed,
        "validation": best.val,
        "validation_per_training": [t.value for t in best.judged],
        "test": [asdict(score) for score in ([several.steps[-1].score] if several and several.steps else best.tests)],
        "trained_on_validation_labels": bool(best.refits),
        "joined": len(model.encoder.members) if join and isinstance(model.encoder, JoinedEncoder) else 1,
        "ensemble": [asdict(member) for member in several.ensembled.members] if several is not None else [],
        "distilled": several is not None and several.distilled is not None,
        "classes": list(shared.split.labelled.data.classes),
    }
    folder.write_text(folder.SCORES, json.dumps(scores, indent=2))


def encoder_facts(model: Trained, spec: TrialSpec, shared: SlotSetup) -> dict[str, Any]:
    """What ``best/config.yaml`` says of the encoder."""
    table, size = shared.table_for(spec), shown_at(model.encoder)
    return {
        **({"label": spec.encoder} if spec.encoder else {}),
        "name": shared.encoder_for(spec).name or "a network given in Python",
        "weights": origin_of(model.encoder) or "none",
        **({"size": list(size)} if size is not None else {}),
        **({"views": list(VIEWS[: table.views])} if table is not None else {}),
    }
