"""A winner that may be several: finalists that improve it, chosen on out-of-fold answers, which no test image has a part in.

Greedy forward selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models",
doi:10.1145/1015330.1015432), from the winner on. Deviations: it goes by the log-likelihood, since a metric over some hundred
labels moves in steps; and each finalist's confidences are calibrated before they are averaged, so that none outvotes the others
by being too sure. The models of one finalist are averaged by the geometric mean of their probabilities: out-of-fold answers are
those of single models, and the arithmetic mean of several is less sure than they are.

M finalists, n labels that judged, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import nn

from methods.data.records import IntArray
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier, Mixture, head_record
from methods.parts.joined import JoinedEncoder
from methods.protocols.confidence import Scaling, fit_scaling
from methods.protocols.contract import Trained, answered, difference_of
from methods.protocols.predict import own_or_probe
from orchestrator.engine.calibration import calibrate
from orchestrator.engine.events import Ensembled, Member, StepName
from orchestrator.engine.finalists import Finalist, overlapping
from orchestrator.engine.records import SlotSetup, Trial, TrialSpec
from orchestrator.engine.trial import division_of, load_training, trained
from orchestrator.folder import RunFolder, load_tensors
from search_spaces.domains import UserError

PICKS = 20
"""Finalists picked at the most, the same one again and again too: weights are multiples of one over the number of picks."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What a finalist said of the labels that judged it, fold after fold, the images of a fold in order.

    Attributes:
        fold, index, label: int64 [n], the fold, the image and its class.
        log_p: [n, K], of its calibrated probabilities, the geometric mean over repeats.
        units: [n], what each image contributes to its score, the mean over repeats.
        scaling: what calibrates it.
    """

    fold: IntArray
    index: IntArray
    label: IntArray
    log_p: FloatArray
    units: FloatArray
    scaling: Scaling


def out_of_fold(finalist: Finalist, shared: SlotSetup) -> OutOfFold | None:
    """The answers that its trainings left; None where they are none of the classifier that is exported."""
    found = calibrate(finalist, shared)
    if found is None:
        return None
    folds = sorted({trial.spec.fold for trial in finalist.judged})
    said = [[_said(t, found.scaling, shared) for t in finalist.judged if t.spec.fold == fold] for fold in folds]
    if any(not np.array_equal(one.index, several[0].index) for several in said for one in several):
        return None
    return OutOfFold(
        fold=np.repeat(folds, [len(several[0].index) for several in said]),
        index=np.concatenate([several[0].index for several in said]),
        label=np.concatenate([several[0].label for several in said]),
        log_p=log_softmax(np.concatenate([np.mean([one.log_p for one in several], axis=0) for several in said]), axis=1),
        units=np.concatenate([np.mean([one.units for one in several], axis=0) for several in said]),
        scaling=found.scaling,
    )


def _said(trial: Trial, scaling: Scaling, shared: SlotSetup) -> OutOfFold:
    """The answers of one training, the images in order."""
    kept = load_tensors(shared.storage, RunFolder.trial(trial.spec.key, "answers.pt"), "cpu")
    order = kept["index"].argsort()
    index, label, logits = (kept[name][order] for name in ("index", "label", "logits"))
    log_p = scaling.layer()(logits.double()).log_softmax(1).numpy()
    units = measured_units(shared, logits.numpy(), index.numpy(), label.numpy())
    return OutOfFold(np.full(len(order), trial.spec.fold), index.numpy(), label.numpy(), log_p, units, scaling)


def measured_units(shared: SlotSetup, logits: NDArray[np.floating], index: IntArray, label: IntArray) -> FloatArray:
    """[n]: what each answer contributes to the study's metric, of logits [n, K] for one fold's images."""
    said = answered(shared.protocol.name, torch.from_numpy(logits), index, label, time.perf_counter(), None)
    units = shared.task.measured(said).units()
    assert units is not None, "answers are right or wrong, or count by a metric"
    return units


def greedy(true: FloatArray) -> FloatArray:
    """[M]: weights, multiples of one over at most ``PICKS``, whose sum is 1; the first is above 0.

    Args:
        true: [M, n], logarithm of the probability that each finalist gave to the true class; the first is the winner's.
    """
    counts = np.eye(1, len(true))[0]
    best, likelihood, total = counts, float(true[0].mean()), true[0]
    for picked in range(1, PICKS):
        sums = np.logaddexp(total, true)
        found = sums.mean(axis=1) - np.log(picked + 1)
        pick = int(found.argmax())
        counts, total = counts + np.eye(1, len(true), pick)[0], sums[pick]
        if found[pick] > likelihood:
            best, likelihood = counts, float(found[pick])
    return np.asarray(best / best.sum())


def mixed(log_p: FloatArray, weights: FloatArray) -> FloatArray:
    """[n, K]: the logarithm of the mean probability, of log_p [M, n, K]."""
    return np.asarray(logsumexp(log_p, axis=0, b=weights[:, None, None]))


def ensemble_of(board: Sequence[Finalist], shared: SlotSetup) -> Ensembled | None:
    """The ensemble of the finalists, and what it would gain: fold by fold, with weights chosen on the other folds.

    Finalists that fewer folds judged than the winner have no part in it. None where the winner left no answers of just the
    classifier that is exported, or fewer than two folds judged it.
    """
    own = out_of_fold(board[0], shared) if board else None
    if own is None or len(np.unique(own.fold)) < 2:
        return None
    asked = [(f, out_of_fold(f, shared)) for f in board[1:]]
    among = [(board[0], own), *((f, o) for f, o in asked if o is not None and np.array_equal(o.index, own.index))]
    log_p = np.stack([o.log_p for _, o in among])
    true = log_p[:, np.arange(len(own.label)), own.label]
    units = np.empty(len(own.label))
    for fold in np.unique(own.fold):
        inside = own.fold == fold
        said = mixed(log_p[:, inside], greedy(true[:, ~inside]))
        units[inside] = measured_units(shared, said, own.index[inside], own.label[inside])
    each = units - own.units
    gap = difference_of(each, bool(np.isin(each, (-1, 0, 1)).all()))
    gap = overlapping(gap, len(np.unique(own.fold)), board[0].folds)
    weights = greedy(true)
    members = tuple(
        Member(f.trial.spec.trial, float(weight), o.scaling, len(models_of(f)))
        for (f, o), weight in zip(among, weights, strict=True)
        if weight > 0
    )
    scaling = fit_scaling(mixed(log_p, weights), own.label)
    return Ensembled(members, scaling, float(own.units.mean()), float(units.mean()), gap.mean, gap.low, gap.high, gap.n)


def models_of(finalist: Finalist) -> tuple[Trial, ...]:
    """Its models: the refits, and those of its folds; folds that judged one and the same model count once."""
    models: dict[tuple[str, int], Trial] = {}
    for trial in (*finalist.refits, *finalist.judged):
        models.setdefault((trial.spec.parent or trial.spec.key, trial.spec.repeat), trial)
    return tuple(models.values())


@dataclass(frozen=True)
class Model:
    """A model that votes: what was trained, its checkpoint, its share of the vote, and what calibrates it."""

    spec: TrialSpec
    checkpoint: str
    weight: float
    scaling: Scaling


def voters(board: Sequence[Finalist], found: Ensembled) -> tuple[Model, ...]:
    """The models of the ensemble, the winner's first; the models of a finalist share its weight."""
    by_trial = {f.trial.spec.trial: models_of(f) for f in board}
    return tuple(
        Model(trial.spec, trial.checkpoint, member.weight / member.models, member.scaling)
        for member in found.members
        for trial in by_trial[member.trial]
        if trial.checkpoint is not None
    )


def can_vote(shared: SlotSetup, voting: Sequence[Model], device: torch.device) -> bool:
    """Whether there are several, each an encoder with a head that a file can hold."""
    models = Voting(shared, device)
    try:
        for model in voting:
            head_record(models.classifier(model)[1])
    except UserError:
        return False
    return len(voting) > 1


def way_to(voting: Sequence[Model]) -> Mapping[StepName | None, tuple[Model, ...]]:
    """The models of each step from the winner alone (None) to all; steps that add nothing are left out."""
    own = tuple(m for m in voting if m.spec.trial == voting[0].spec.trial)
    steps: dict[StepName | None, tuple[Model, ...]] = {None: own[:1]}
    if len(own) > 1:
        steps["folds"] = own
    if len(voting) > len(own):
        steps["finalists"] = tuple(voting)
    return steps


class Voting:
    """Models as classifiers, each loaded once."""

    def __init__(self, shared: SlotSetup, device: torch.device) -> None:
        self.shared, self.device = shared, device
        self._loaded: dict[str, tuple[Encoder, nn.Module]] = {}

    def together(self, models: Sequence[Model], scaling: Scaling | None = None) -> Trained:
        """One model that answers with the weighted mean of the finalists' calibrated probabilities.

        Its embedding is those of all encoders side by side; models on one frozen encoder share it.

        Args:
            models: at least one; their weights are scaled to a sum of 1.
            scaling: what calibrates the whole; None where nothing does.
        Raises:
            UserError: a classifier that is no encoder with a head.
        """
        encoders: dict[Encoder, int] = {}
        loaded = [self.classifier(model) for model in models]
        for encoder, _ in loaded:
            encoders.setdefault(encoder, sum(other.dim for other in encoders))
        parts = [(encoders[encoder], encoders[encoder] + encoder.dim) for encoder, _ in loaded]
        heads = [nn.Sequential(head, model.scaling.layer()) for model, (_, head) in zip(models, loaded, strict=True)]
        joined = JoinedEncoder(list(encoders), unit=False)
        members: list[nn.Module] = []
        weights: list[float] = []
        for trial in dict.fromkeys(model.spec.trial for model in models):
            own = [row for row, model in enumerate(models) if model.spec.trial == trial]
            equal = [1 / len(own)] * len(own)
            members.append(Mixture([heads[row] for row in own], [parts[row] for row in own], equal, geometric=True))
            weights.append(sum(models[row].weight for row in own))
        whole = [weight / sum(weights) for weight in weights]
        mixture = Mixture(members, [(0, joined.dim)] * len(members), whole)
        head = mixture if scaling is None else nn.Sequential(mixture, scaling.layer())
        return Trained(joined, Classifier(joined, head).to(self.device).eval(), None, uses_labels=True)

    def classifier(self, model: Model) -> tuple[Encoder, nn.Module]:
        """Encoder and head of one model, as they were trained. Raises UserError where it has none."""
        spec, shared = model.spec, self.shared
        if spec.key not in self._loaded:
            own = trained(load_training(shared, spec, model.checkpoint, self.device))
            labels = shared.task.probe_labels(division_of(shared, spec), own, spec.purpose == "refit")
            predictor = own_or_probe(own, labels, shared.seed)
            encoder, head = getattr(predictor, "encoder", None), getattr(predictor, "head", None)
            if not isinstance(encoder, Encoder) or not isinstance(head, nn.Module):
                raise UserError(
                    f"an ensemble averages encoders with heads, got {type(predictor).__name__} of {spec.method}; use"
                    " heads.Classifier, or leave selection.ensemble out"
                )
            self._loaded[spec.key] = encoder, head
        return self._loaded[spec.key]
