"""How machines learn from few labels: methods, their parts, their data, their evaluation. Nothing here knows Ray."""

from methods.batch import Batch, BatchSpec, Episodes, EpisodeShape, Step
from methods.catalogue import CATALOGUE, method
from methods.contracts import (
    Context,
    EpisodicLearner,
    Learner,
    Loss,
    Method,
    MetricLearner,
    Optimizer,
    SharedConfig,
    Stage,
)
from methods.parts.encoders import Encoder, EncoderSpec
from methods.parts.heads import Classifier
from methods.training import Training, TrainSettings
from methods.world import World

__all__ = [
    "CATALOGUE",
    "Batch",
    "BatchSpec",
    "Classifier",
    "Context",
    "Encoder",
    "EncoderSpec",
    "EpisodeShape",
    "Episodes",
    "EpisodicLearner",
    "Learner",
    "Loss",
    "Method",
    "MetricLearner",
    "Optimizer",
    "SharedConfig",
    "Stage",
    "Step",
    "TrainSettings",
    "Training",
    "World",
    "method",
]
