"""Finalists that improve the winner: which are taken, with which weights, and what they are said to gain."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.storage import LocalStorage
from methods.protocols import PROTOCOLS
from methods.protocols.confidence import Scaling
from methods.tasks import Classification
from orchestrator.engine import ensemble
from orchestrator.engine.ensemble import PICKS, Model, can_vote, ensemble_of, greedy, mixed, models_of, voters, way_to
from orchestrator.engine.finalists import Finalist
from orchestrator.engine.records import Purpose, Trial, TrialSpec
from orchestrator.folder import RunFolder, save_tensors

LABELS, CLASSES, FOLDS = 200, 4, 4


def training(number: int, purpose: Purpose, fold: int = 0, parent: str | None = None) -> Trial:
    key = f"{number:04d}-{purpose}{fold}"
    spec = TrialSpec(key, number, "one", {}, 0, purpose, parent=parent, fold=fold, folds=FOLDS if purpose == "fold" else 1)
    return Trial(spec, "finished", checkpoint=f"trials/{key}/checkpoint-1.pt")


def finalist(number: int, folds: int = FOLDS, refit: bool = False) -> Finalist:
    judged = tuple(training(number, "fold", fold) for fold in range(folds))
    refits = (training(number, "refit"),) if refit else ()
    return Finalist(training(number, "search"), judged, refits, (), FOLDS)


def told(folder: Path, *said: np.ndarray, metric: Any = "accuracy") -> Any:
    """What the finalists 0, 1, ... leave: logits [LABELS, CLASSES] each, a quarter a fold, the images in no order."""
    storage = LocalStorage(folder)
    for number, logits in enumerate(said):
        for fold, rows in enumerate(np.array_split(np.arange(LABELS), FOLDS)):
            index = np.random.default_rng(fold).permutation(rows)
            kept = {"index": index, "label": label()[index], "logits": logits[index].astype(np.float32)}
            key = RunFolder.trial(training(number, "fold", fold).spec.key, "answers.pt")
            save_tensors(storage, key, {name: torch.from_numpy(each) for name, each in kept.items()})
    return SimpleNamespace(storage=storage, protocol=PROTOCOLS["predict"](), task=Classification(metric=metric))


def label() -> np.ndarray:
    return np.arange(LABELS) % CLASSES


def answers(knows: tuple[int, ...], seed: int) -> np.ndarray:
    """A classifier that knows some classes and of the others next to nothing."""
    noise = np.random.default_rng(seed).normal(size=(LABELS, CLASSES))
    sure = 4.0 * np.eye(CLASSES)[label()]
    return np.where(np.isin(label(), knows)[:, None], sure, 0.0) + noise


def test_weights_are_the_best_that_one_pick_after_another_finds() -> None:
    random = np.random.default_rng(0)
    true = np.log(random.uniform(0.05, 0.95, (3, 60)))
    weights = greedy(true)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0

    def likelihood(w: np.ndarray) -> float:
        return float(np.log(np.exp(true).T @ w).mean())

    grid = [np.array(w) / PICKS for w in product(range(PICKS + 1), repeat=3) if sum(w) == PICKS and w[0]]
    assert likelihood(weights) > max(map(likelihood, grid)) - 2e-3
    assert likelihood(weights) >= likelihood(np.eye(3)[0])
    picks = weights * PICKS
    assert any(np.allclose(weights * n, np.round(weights * n)) for n in range(1, PICKS + 1)), picks


def test_nothing_is_added_that_does_not_help() -> None:
    true = np.log(np.stack([np.full(40, 0.9), np.full(40, 0.3), np.full(40, 0.9)]))
    assert greedy(true).tolist() == [1, 0, 0]
    # A certainty that is wrong costs no more than it must, and raises nothing.
    assert greedy(np.array([[-1.0, -1.0], [-1e4, 0.0]])).tolist()[0] > 0


def test_a_mixture_is_the_mean_of_probabilities() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(3), (2, 5))
    weights = np.array([0.75, 0.25])
    np.testing.assert_allclose(np.exp(mixed(np.log(p), weights)), 0.75 * p[0] + 0.25 * p[1])
    np.testing.assert_allclose(mixed(np.log(p), np.array([1.0, 0.0])), np.log(p[0]))


def test_finalists_that_know_other_classes_are_taken(tmp_path: Path) -> None:
    shared = told(tmp_path, answers((0, 1, 2), 0), answers((0, 3), 1), answers((), 2))
    board = [finalist(0, refit=True), finalist(1), finalist(2)]
    found = ensemble_of(board, shared)
    assert found is not None
    assert [member.trial for member in found.members][:2] == [0, 1]
    assert [member.models for member in found.members][:2] == [FOLDS + 1, FOLDS]
    assert sum(member.weight for member in found.members) == pytest.approx(1)
    assert found.alone == pytest.approx((answers((0, 1, 2), 0).argmax(1) == label()).mean())
    assert found.gain == pytest.approx(found.together - found.alone)
    assert found.low < 0.04 < found.gain < found.high
    assert found.n == LABELS
    assert ensemble_of(board, shared) == found, "the same from the same answers"


def test_a_fold_is_judged_with_weights_that_it_did_not_choose(tmp_path: Path) -> None:
    """Of finalists that only guess, one always fits the answers best; the others folds know better than to gain by it."""
    gains = []
    for seed in range(20):
        said = [answers((), 100 * seed + number) for number in range(5)]
        (folder := tmp_path / str(seed)).mkdir()
        found = ensemble_of([finalist(number) for number in range(5)], told(folder, *said))
        assert found is not None
        gains.append(found.gain)
    assert abs(np.mean(gains)) < 3 * np.std(gains, ddof=1) / np.sqrt(len(gains))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_it_is_measured_by_the_studys_metric(metric: str, tmp_path: Path) -> None:
    found = ensemble_of([finalist(0), finalist(1)], told(tmp_path, answers((0, 1), 0), answers((2, 3), 1), metric=metric))
    assert found is not None
    assert found.alone == pytest.approx(0.62, abs=0.08)
    assert found.gain > 0.05


def test_whom_fewer_folds_judged_is_no_part_of_it(tmp_path: Path) -> None:
    shared = told(tmp_path, answers((0, 1, 2), 0), answers((0, 3), 1))
    found = ensemble_of([finalist(0), finalist(1, folds=2)], shared)
    assert found is not None
    assert [(member.trial, member.weight) for member in found.members] == [(0, 1.0)]
    assert (found.gain, found.alone) == (0, found.together)
    assert ensemble_of([finalist(0, folds=1)], shared) is None, "one fold chooses and cannot judge"
    assert ensemble_of([finalist(7)], shared) is None, "no answers were kept"
    assert ensemble_of([], shared) is None
    probed = SimpleNamespace(**{**vars(shared), "protocol": PROTOCOLS["knn"]()})
    assert ensemble_of([finalist(0)], probed) is None, "another classifier than the exported one was asked"


def test_the_steps_from_the_winner_to_the_ensemble(tmp_path: Path) -> None:
    shared = told(tmp_path, answers((0, 1, 2), 0), answers((0, 3), 1))
    board = [finalist(0, refit=True), finalist(1)]
    found = ensemble_of(board, shared)
    assert found is not None
    voting = voters(board, found)
    assert sum(model.weight for model in voting) == pytest.approx(1)
    steps = way_to(voting)
    assert [(name, len(models)) for name, models in steps.items()] == [(None, 1), ("folds", 5), ("finalists", 9)]
    assert steps[None][0].spec.purpose == "refit"
    served = Finalist(training(3, "search"), tuple(training(3, "fold", k, "0003") for k in range(3)), (), (), 3)
    assert len(models_of(served)) == 1, "folds that judged one model bring it once"


def test_only_heads_that_a_file_can_hold_vote_and_no_model_votes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: dict[str, nn.Module] = {}

    def classifier(self: Any, model: Model) -> tuple[Any, nn.Module]:
        return None, heads[model.spec.key]

    monkeypatch.setattr(ensemble.Voting, "classifier", classifier)
    models = [Model(training(number, "refit").spec, "", 0.5, Scaling(1.0, 0.0, 0)) for number in (0, 1)]
    heads |= {model.spec.key: nn.Linear(3, 2) for model in models}
    setup: Any = SimpleNamespace()
    assert can_vote(setup, models, torch.device("cpu"))
    assert not can_vote(setup, models[:1], torch.device("cpu"))
    heads[models[1].spec.key] = nn.Tanh()
    assert not can_vote(setup, models, torch.device("cpu"))
