"""The one training loop: how batches are fed, how parameters are optimised, and when a training ends."""

from methods.training.loop import EPOCH_IMAGES, EpochReport, Precision, Training, TrainSettings, computes_bf16

__all__ = ["EPOCH_IMAGES", "EpochReport", "Precision", "TrainSettings", "Training", "computes_bf16"]
