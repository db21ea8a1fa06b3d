"""What a method on frozen features owes; the counterpart of ``methods.testing.checks``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from methods.contracts import FeatureConfig
from methods.features import Features
from methods.parts.modes import evaluating
from methods.testing.cases import CLASSES, Case, through_file
from methods.testing.checks import check_knobs, check_pickles, owes, require_close
from methods.training import FeatureTraining, fitted_head


def _features(case: Case, seed: int = 0) -> Features:
    return FeatureTraining(case.method, case.config(), case.data(), case.settings(seed)).features()


def _fitted(case: Case, features: Features) -> nn.Module:
    with torch.no_grad():
        return fitted_head(case.method, case.config(), features).eval()


def _asked(features: Features) -> torch.Tensor:
    return features.pool()


def check_feature_entry(case: Case) -> None:
    """The catalogue entry is complete."""
    method = case.method
    for attribute in ("name", "paper", "summary"):
        owes(getattr(method, attribute), case, f"its entry must have a {attribute}")
    owes(not method.summary.endswith("."), case, "its summary is a line in a list and must not end with a full stop")
    owes(issubclass(method.config, FeatureConfig), case, "its config must be a FeatureConfig, which says how views are seen")
    owes(method.uses_labels, case, "it gives a classifier, so it must declare that it uses labels")


def check_head(case: Case) -> None:
    """The head gives a finite logit for every class, each image by itself, and beats chance on separable classes."""
    features = _features(case)
    head, x = _fitted(case, features), _asked(features)
    with torch.no_grad():
        logits, alone = head(x), torch.cat([head(row[None]) for row in x[:3]])
    owes(logits.shape == (len(x), CLASSES), case, f"its head must give a logit for each class, got {tuple(logits.shape)}")
    owes(logits.is_floating_point() and torch.isfinite(logits).all(), case, "its logits must be finite")
    require_close(alone, logits[:3], case, "its head must answer for each image by itself", 1e-4, 1e-4)
    truth = torch.arange(len(x)) // (len(x) // CLASSES)
    right = float((logits.argmax(1) == truth).float().mean())
    owes(right > 0.5, case, f"it must learn 4 classes that stand apart, got an accuracy of {right:.0%}")


def check_unlabelled_class(case: Case) -> None:
    """A class without a label never wins, and its logit is finite."""
    features = _features(case)
    label = torch.where(features.label == CLASSES - 1, -1, features.label)
    fewer = Features(features.values, label, CLASSES, features.seed, features.device, features.seen)
    with torch.no_grad():
        logits = _fitted(case, fewer)(_asked(features))
    owes(logits.shape[1] == CLASSES, case, "it must give a logit for a class without a label too")
    owes(torch.isfinite(logits).all(), case, "the logit of a class without a label must be finite")
    owes((logits.argmax(1) != CLASSES - 1).all(), case, "a class without a label must never win")


def check_hidden_labels(case: Case) -> None:
    """What the label of an image is changes nothing where it is hidden, and features are left as they are."""
    features = _features(case)
    before = features.values.clone()
    first = _fitted(case, features).state_dict()
    owes(torch.equal(features.values, before), case, "it must not change the features")
    spoilt = features.values.clone()
    other = Features(spoilt, torch.where(features.label < 0, -7, features.label), CLASSES, features.seed, seen=features.seen)
    second = _fitted(case, other).state_dict()
    same = all(torch.equal(first[name], second[name]) for name in first)
    owes(same, case, "labels below 0 are hidden, and nothing may depend on how far below")


def check_same_fit(case: Case) -> None:
    """The same seed gives the same head to the last bit, in a fresh and in a used process."""
    torch.manual_seed(0)
    first = _fitted(case, _features(case)).state_dict()
    torch.manual_seed(123)  # Whatever the process did before must not matter.
    np.random.seed(123)
    state = torch.get_rng_state()
    second = _fitted(case, _features(case)).state_dict()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    owes(not differing, case, f"the same seed must give the same head, but these differ: {', '.join(differing[:3])}")
    owes(torch.equal(state, torch.get_rng_state()), case, "a fit must leave torch's global random state alone")


def check_saved(case: Case) -> None:
    """A training that was saved and loaded answers as it did, and loads without code."""
    before = case.start()
    before.train()
    owes(before.done == before.settings.top, case, "its training must end at the top in one go")
    after = case.start()
    after.load(through_file(before.state()))
    images = case.data().images.take(torch.arange(0, 64, 4))
    with torch.no_grad(), evaluating(before.learner, after.learner):
        a, b = (training.learner.predictor()(images) for training in (before, after))
        z = before.learner.encoder()(images)
    owes(torch.equal(a, b), case, "a loaded training must answer to the last bit as the saved one")
    owes(z.shape[0] == len(images) and torch.isfinite(z).all(), case, "its encoder must answer for every image")


def check_head_device(case: Case) -> None:
    """Everything moves with the head."""
    head = _fitted(case, _features(case)).to("meta")
    left = {t.device.type for t in (*head.parameters(), *head.buffers())} - {"meta"}
    owes(not left, case, f"everything must move with the head, but something stays on {', '.join(sorted(left))}")


FEATURE_CHECKS: tuple[Callable[[Case], None], ...] = (
    check_feature_entry,
    check_knobs,
    check_pickles,
    check_head,
    check_unlabelled_class,
    check_hidden_labels,
    check_same_fit,
    check_saved,
    check_head_device,
)
"""All that a method on frozen features owes, cheapest first."""
