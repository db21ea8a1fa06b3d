"""Care for the data of a study, after its test: by the frozen features and the out-of-fold answers that it left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cluster.storage import MissingKey
from methods.data.records import Split
from orchestrator.care.files import ALL, write_care
from orchestrator.care.find import find
from orchestrator.care.label_errors import Judged
from orchestrator.care.looks import Part, part_of_test
from orchestrator.care.past import past_of
from orchestrator.care.sheets import pixels_of
from orchestrator.engine.finalists import Finalist, finalists
from orchestrator.engine.history import History
from orchestrator.engine.records import FeatureTable, SlotSetup
from orchestrator.features import open_values, read_index
from orchestrator.folder import RunFolder, load_tensors
from orchestrator.prepare import Prepared

MOST = 20_000
"""Images of the pool that are looked at, the labelled ones first: 25,000 with the test take 12 s of one core."""

UNJUDGED = "no finalist answered for labels that it had not learnt from"


def write_care_of(prepared: Prepared, shared: SlotSetup, folder: RunFolder, history: History) -> bool:
    """Looks for everything and writes it into the run folder, once; True where anything is new."""
    if history.chosen is None or folder.exists(folder.CARE + ALL):
        return False
    parts, table = _parts(prepared.split, shared)
    board = finalists(history)
    answers = _judged(board, folder, parts[0].index) if _names_pool(prepared.split) else None
    past = ""
    if board and prepared.split.test is not None:
        past = past_of(shared.encoder_for(board[0].trial.spec), [prepared.study.data, prepared.study.test])
    by, compared = "" if table is None else _named(table), bool(prepared.facts.labels)
    care = find(parts, by, lambda looks: answers, UNJUDGED, shared.seed, past, compared)
    tests = 0 if prepared.split.test is None else len(prepared.split.test)
    care = replace(care, drawn_from=(len(prepared.split.train), tests))
    write_care(folder.storage, folder.CARE, care, pixels_of(parts))
    return True


def _parts(split: Split, shared: SlotSetup) -> tuple[list[Part], FeatureTable | None]:
    """Training and test images with their embeddings by the first frozen encoder that has seen both."""
    tested = split.test
    for table in shared.features or tuple(read_index(shared.storage)):
        if not table.pool or (tested is not None and not table.test):
            continue
        try:
            pool = open_values(shared.storage, table.pool)
            test = None if tested is None else open_values(shared.storage, table.test)
        except MissingKey:
            continue
        return parts_of(split, pool, test), table
    return parts_of(split, None, None), None


def parts_of(split: Split, pool: torch.Tensor | None, test: torch.Tensor | None) -> list[Part]:
    """Training and test images, at most ``MOST`` of each.

    Args:
        pool, test: float [N, V, D], embeddings of all images of the two, where an encoder has seen them.
    """
    data, images = split.labelled.data, split.train.images
    known = _names_pool(split)
    label = data.label if known else split.train.label
    classes = data.classes if known else split.train.names or tuple(str(k) for k in range(split.train.classes))
    # Labelled ones first; each by lot, since files lie class by class.
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(np.flatnonzero(known)) for known in (label >= 0, label < 0)])
    index = np.sort(order[:MOST])
    train = Part("train", images, index, label[index], classes, data.names if known else (), pool)
    if split.test is None:
        return [train]
    chosen = np.sort(random.permutation(len(split.test))[:MOST])
    return [train, part_of_test(replace(split.test, index=split.test.index[chosen], label=split.test.label[chosen]), test)]


def _names_pool(split: Split) -> bool:
    """Whether positions and names of labelled images are those of the pool."""
    return split.labelled.data.images is split.train.images and not split.new_classes


def _judged(board: list[Finalist], folder: RunFolder, looked_at: np.ndarray) -> Judged | None:
    """What the finalists answered for labels out of fold: the winner, and those who answered for all that it did.

    Args:
        looked_at: int64 [n], positions of the training part, ascending.
    """
    answers = [_answers(finalist, folder) for finalist in board]
    if not answers or answers[0] is None:
        return None
    found = [each for each in answers if each is not None]
    index, label, _ = found[0]
    known = np.isin(index, looked_at)
    index, label = index[known], label[known]
    members = []
    for own, _, p in found:
        place = np.searchsorted(own, index).clip(max=len(own) - 1)
        if np.array_equal(own[place], index):
            members.append(p[place])
    return Judged(np.searchsorted(looked_at, index), label, tuple(members)) if len(np.unique(label)) > 1 else None


def _answers(finalist: Finalist, folder: RunFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Positions int64 [n], ascending, labels int64 [n] and probabilities float64 [n, K], the mean over its trainings."""
    keys = [folder.trial(trial.spec.key, "answers.pt") for trial in finalist.judged]
    kept = [load_tensors(folder.storage, key, "cpu") for key in keys if folder.exists(key)]
    if not kept:
        return None
    index, label, logits = (torch.cat([each[name] for each in kept]) for name in ("index", "label", "logits"))
    places, first, inverse, count = np.unique(index.numpy(), return_index=True, return_inverse=True, return_counts=True)
    total = np.zeros((len(places), logits.shape[1]))
    np.add.at(total, inverse, logits.double().softmax(1).numpy())
    return places, label.numpy()[first], total / count[:, None]


def _named(table: FeatureTable) -> str:
    size = f" at {table.size[0]}×{table.size[1]} pixels" if table.size else ""
    return f"embeddings of {table.spec.name or 'a network given in Python'}{size}"
