"""The one training loop: how batches are fed, how parameters are optimised, and when a training ends."""

from methods.training.clock import Fidelity
from methods.training.feeding import Feeder, Stream, gather_episodes
from methods.training.loop import EPOCH_IMAGES, EpochReport, Precision, Training, TrainSettings, computes_bf16
from methods.training.on_features import FeatureTraining, fitted_head
from methods.training.optimisation import Optimisation

__all__ = [
    "EPOCH_IMAGES",
    "EpochReport",
    "FeatureTraining",
    "Feeder",
    "Fidelity",
    "Optimisation",
    "Precision",
    "Stream",
    "TrainSettings",
    "Training",
    "computes_bf16",
    "fitted_head",
    "gather_episodes",
]
