"""An ensemble distilled into one model, which learns on the pool what all its members say together.

Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531. The student begins as the winner:
a network is trained on to the study's highest rung, of a winner on frozen features the head alone is fitted anew.

N images of the pool, K classes, D embedding.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from methods.adapt.distill import taught
from methods.batch import seed_of
from methods.contracts import SharedConfig
from methods.data.records import TrainData
from methods.parts.encoders import Encoder, can_be_saved
from methods.parts.heads import Classifier, load_predictor, save_predictor
from methods.parts.logistic import fit_logistic
from methods.parts.modes import threads
from methods.protocols.confidence import Scaling
from methods.protocols.contract import Trained, embed, logits_of
from methods.training import Training, TrainSettings
from methods.world import World
from orchestrator.engine.ensemble import Model, Voting
from orchestrator.engine.events import Distilled
from orchestrator.engine.records import SlotSetup
from orchestrator.features import remember_features
from orchestrator.folder import RunFolder

UNCALIBRATED = Scaling(1.0, 1e-6, 0)
"""Of a student, which has learnt calibrated probabilities; no image is left that could calibrate it."""

BATCH = 64
"""Images of the pool in a network's step, and as many labelled ones: larger steps are too few in a short study, and the student
then agrees less with its teachers (digits, 4 epochs of 1,280 images: 93 and 97% with 256, 95 and 98% with 64)."""

PENALTY = 1.0
"""Inverse, of the head that is fitted on frozen features, standardised."""


def distil(setup: SlotSetup, models: Sequence[Model], scaling: Scaling, device: torch.device) -> Distilled | None:
    """Trains the student and writes it to the run folder; None where no file can hold it, or its training diverged.

    Args:
        models: those that vote, the winner's first.
        scaling: what calibrates the whole.
    """
    with threads(setup.threads), torch.random.fork_rng():
        started, voting = time.perf_counter(), Voting(setup, device)
        for model in models:
            remember_features(setup, model.spec, device)
        teacher, own = voting.together(models, scaling), voting.together(models[:1])
        (encoder,) = own.encoder.composed_of()
        if not can_be_saved(encoder):
            return None
        data = setup.task.final_data(setup.split)
        every = np.arange(len(data))
        said = logits_of(_predictor(teacher), data.images, every).softmax(1)
        spec = models[0].spec
        if setup.methods[spec.method].on_features:
            student: Classifier | None = Classifier(encoder, _head(encoder, data, said))
        else:
            student = _network(setup, models[0], voting, said, data, device)
        if student is None:
            return None
        answers = logits_of(student, data.images, every)
        agreement = float((answers.argmax(1) == said.argmax(1)).float().mean())
        file, key = io.BytesIO(), RunFolder.trial(spec.key, "student.pt")
        save_predictor(file, student, setup.split.labelled.data.classes)
        setup.storage.put(key, file.getbuffer())
        return Distilled(key, agreement, time.perf_counter() - started)


def student_of(setup: SlotSetup, found: Distilled, device: torch.device) -> Trained:
    """The student as its file left it."""
    model = load_predictor(io.BytesIO(setup.storage.get(found.file))).to(device)
    return Trained(model.encoder, model, None, uses_labels=True)


def _predictor(model: Trained) -> nn.Module:
    assert model.predictor is not None, "what votes is a classifier"
    return model.predictor


def _head(encoder: Encoder, data: TrainData, said: Tensor) -> nn.Module:
    """Embeddings [B, D] to logits [B, K], fitted on what was said of the pool."""
    x = embed(encoder, data.images, np.arange(len(data)))
    norm, layer = nn.BatchNorm1d(x.shape[1], affine=False), nn.Linear(x.shape[1], said.shape[1])
    with torch.no_grad():
        norm.running_mean, norm.running_var = x.mean(0), x.var(0)
        head = nn.Sequential(norm, layer).to(x.device).eval()
        weight, bias = fit_logistic(norm(x), said, PENALTY)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return head


def _network(
    setup: SlotSetup, winner: Model, voting: Voting, said: Tensor, data: TrainData, device: torch.device
) -> Classifier | None:
    """The winner's network, trained on; None where that diverged."""
    encoder, head = voting.classifier(winner)
    if not list(head.parameters()):
        head = nn.Linear(encoder.dim, said.shape[1]).to(device)
    by_clock = setup.top.unit == "seconds"
    settings = TrainSettings(
        epochs=None if by_clock else int(setup.top.amount),
        encoder=setup.encoder_for(winner.spec),
        seed=seed_of(setup.seed, "student"),
        epoch_images=setup.epoch_images,
        precision=setup.precision,
        seconds=setup.top.amount if by_clock else None,
    )
    # No more than the winner was trained with, which fit the memory.
    knobs = SharedConfig(batch_size=min(BATCH, int(winner.spec.values.get("batch_size", BATCH))))
    training = Training(taught(Classifier(encoder, head), said), knobs, data, settings, World(device=device))
    while training.finite and training.done.amount < setup.top.amount:
        training.train()
    student = training.learner.predictor()
    assert isinstance(student, Classifier)
    return student.eval() if training.finite else None
