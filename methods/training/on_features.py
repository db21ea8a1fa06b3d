"""The training of a feature method: one fit on a frozen encoder's features, from nothing straight to the top.

It answers as ``Training`` does, so that whoever trains, scores and saves need not know which of the two it is. It trains no
encoder for any epoch, so it reports 0 epochs, and the seconds of its fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, seed_of
from methods.contracts import Method, TrainingError
from methods.data.records import IntArray, TrainData
from methods.features import Features, Seen
from methods.parts.encoders import Encoder, EncoderSpec, build_encoder
from methods.parts.heads import head_from, head_record
from methods.parts.mirrored import MirroredEncoder
from methods.protocols.embeddings import Classifier, Embedded, embed_views, recall, remember
from methods.training import clock
from methods.training.clock import Fidelity
from methods.training.feature_rows import trained_head
from methods.training.loop import EpochReport, TrainSettings, computes_bf16
from methods.world import World
from search_spaces.domains import UserError

SAMPLE = 2048
"""Unlabelled images that a fit is timed with before any is embedded."""

HELD = 16
"""Frozen encoders that a process holds: a search goes back and forth among those that it compares."""

FIT = "fit"
"""The one stage."""


@lru_cache(maxsize=HELD)
def _built(
    spec: EncoderSpec, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Encoder, MirroredEncoder]:
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("frozen encoder"))
        encoder = build_encoder(spec, shape, mean, std).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder.eval(), MirroredEncoder(encoder).eval()


def frozen_encoder(spec: EncoderSpec, data: TrainData, device: torch.device | str = "cpu") -> Encoder:
    """The encoder that feature methods share in this process; with its starting weights, whatever the trial's seed."""
    return _built(spec, data.images.shape, data.mean, data.std, torch.device(device))[0]


def fitted_head(method: Method, config: Any, features: Features) -> nn.Module:
    """The head of a feature method, features [B, D] -> logits [B, K]."""
    return trained_head(method, config, features) if method.fit is None else method.fit(config, features)


class FeatureModel(nn.Module):
    """A fitted feature method: what a learner offers to be scored and exported."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.classifier = Classifier(encoder, head.eval())

    def encoder(self) -> Encoder:
        """Images -> embeddings, of image and mirror image where the method averages both."""
        return self.classifier.encoder

    def predictor(self) -> nn.Module:
        """Images [B, C, H, W] -> logits [B, K]."""
        return self.classifier

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing: a feature method sees no images."""
        return {}


class FeatureTraining:
    """One configuration of one feature method; see ``methods.training.Training``, whose arguments and answers it has.

    Features come from what this process ``remember``s of encoder and images; where there is nothing, the whole pool is
    embedded first, and remembered.

    Attributes:
        learner: the fitted model; there from the fit, or from ``load``, on.
        finite: False where the fit's loss was not finite.
    Raises:
        TrainingError: the method is no feature method.
    """

    def __init__(
        self,
        method: Method,
        config: Any,
        data: TrainData,
        settings: TrainSettings,
        world: World | None = None,
        truth: IntArray | None = None,
    ) -> None:
        if not method.on_features:
            raise TrainingError(f"{method.name} is trained by gradient descent; use Training")
        self.method, self.config, self.data, self.settings = method, config, data, settings
        self.world = world or World()
        self.finite = True
        self._learner: FeatureModel | None = None
        encoder = frozen_encoder(settings.encoder, data, self.world.device)
        self._encoder = encoder

    @property
    def learner(self) -> FeatureModel:
        assert self._learner is not None, "a feature method is fitted first"
        return self._learner

    @property
    def uses_labels(self) -> bool:
        """Whether this training learns from labels."""
        return self.method.reads_labels(self.data)

    @property
    def done(self) -> Fidelity:
        """Nothing or the top."""
        top = self.settings.top
        return top if self._learner is not None else Fidelity(top.unit, 0)

    @property
    def epoch(self) -> int:
        """No epoch is trained."""
        return 0

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._encoder

    def features(self) -> Features:
        """What the method is fitted on."""
        views = 2 if self.data.flip else 1
        known = recall(self._encoder, self.data.images)
        if known is None:
            precision = self.settings.precision
            bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(self.world.device))
            known = Embedded(self.data.images, embed_views(self._encoder, self.data.images, views, bf16))
            remember(self._encoder, known)
        wanted: Seen = getattr(self.config, "views", "one")
        return Features(
            values=known.values,
            label=torch.from_numpy(self.data.label),
            classes=self.data.classes,
            seed=seed_of(self.settings.seed, self.method.name),
            device=self.world.device,
            seen=wanted if known.values.shape[1] > 1 else "one",
            memo=known.memo,
        )

    def train(self, until: float | None = None) -> EpochReport:
        """Fits the head; ``until`` can only be the top."""
        top = self.settings.top
        assert until is None or until == top.amount, "a feature method is fitted in one go"
        features = self.features()
        started = clock.now(self.world.device)
        # For a head that draws from torch's global state; methods draw from the features' seed.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(features.seed)
            head = fitted_head(self.method, self.config, features).eval()
            x, label = features.labelled()
            loss = float(F.cross_entropy(head(x).float(), label))
        self._take(head, features.seen)
        self.finite = loss == loss and abs(loss) != float("inf")
        return EpochReport(
            epoch=0,
            done=self.done,
            stage=FIT,
            parts={"loss": loss},
            seconds=clock.now(self.world.device) - started,
            images=0,
            finite=self.finite,
        )

    def _take(self, head: nn.Module, seen: Seen) -> None:
        encoder = self._encoder
        if seen == "averaged":
            _, encoder = _built(self.settings.encoder, self.data.images.shape, self.data.mean, self.data.std, self.world.device)
        self._seen = seen
        self._learner = FeatureModel(encoder, head.to(self.world.device))

    def seconds_per_epoch(self, steps: int = 3) -> float:
        """Seconds of a fit, spread over the epochs of the top where it has epochs. Where nothing is embedded yet, on noise of
        the same shape, of at most ``SAMPLE`` images beside the labelled ones.
        """
        features = self.features() if recall(self._encoder, self.data.images) else self._noise()
        started = clock.now(self.world.device)
        with torch.random.fork_rng(), torch.no_grad():
            fitted_head(self.method, self.config, features)
        return (clock.now(self.world.device) - started) / (self.settings.epochs or 1)

    def _noise(self) -> Features:
        hidden = torch.nonzero(torch.from_numpy(self.data.label) < 0).flatten()[:SAMPLE]
        known = torch.nonzero(torch.from_numpy(self.data.label) >= 0).flatten()
        label = torch.from_numpy(self.data.label)[torch.cat([known, hidden])]
        stream = torch.Generator().manual_seed(0)
        values = torch.randn(len(label), 1, self._encoder.dim, generator=stream)
        return Features(values, label, self.data.classes, device=self.world.device)

    def state(self) -> dict[str, Any]:
        """The head and how images are seen: tensors, numbers and strings only. The encoder is the study's own.

        A head of other layers than ``methods.parts.heads`` knows is fitted anew when the state is loaded, which is exact.
        """
        state: dict[str, Any] = {"method": self.method.name, "fitted": self._learner is not None}
        if self._learner is None:
            return state
        try:
            return {**state, "seen": self._seen, **head_record(self._learner.classifier.head)}
        except UserError:
            return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``. Raises TrainingError where it is another method's."""
        if state["method"] != self.method.name:
            raise TrainingError(f"the checkpoint must be of method {self.method.name}, got {state['method']}")
        if "layers" in state:
            self._take(head_from(state, "the checkpoint").eval(), state["seen"])
        elif state["fitted"]:
            self.train()

    def adopt(self, state: Mapping[str, Any]) -> None:
        """A fork of a feature method is a fit of its own. Raises TrainingError in any case."""
        raise TrainingError(f"{self.method.name} is fitted in one go, so no trial can be forked from it; start another")
