"""Ladder network: a classifier whose noisy layers are denoised, from the top down, towards its clean ones.

Rasmus et al. 2015, "Semi-supervised learning with ladder networks", arXiv:1507.02672.
Noise enters the image and every normalised activation of the corrupted pass. The decoder goes down from the logits; at
every level it combines what comes from above with the noisy layer beside it (lateral connection) and pays the squared
distance to the clean layer.

Deviations: any encoder, so a level is one of the encoder's layers (its feature map after the activation) and the levels
below and above them are the image and the logits. Levels are normalised per channel by their own pass's statistics, where
the paper normalises the reconstruction by the clean pass's. The clean pass carries no gradient. The combinator's ten
parameters are per channel. Downward steps are a 3x3 convolution and nearest-neighbour upsampling. Costs are means over
units, so their weights do not depend on the width. BatchNorm's running statistics follow the clean pass, which predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from methods.batch import BatchSpec, RandomStream, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier
from methods.parts.modes import still_statistics
from methods.semisup.shared import RecipeConfig
from search_spaces.domains import Float, knob


@dataclass(frozen=True)
class Config(RecipeConfig):
    """Knobs."""

    noise: float = knob(
        0.3, Float(0.05, 1.0, log=True), legal=Float(0.0, 10), unit="standard deviations", doc="noise of every layer",
        source="Rasmus 2015: .3",
    )  # fmt: skip
    image_weight: float = knob(
        1.0, Float(0.01, 30.0, log=True), legal=Float(0.0, 1e4), doc="cost of the image", source="Rasmus 2015: highest below"
    )
    layer_weight: float = knob(
        0.1, Float(0.01, 3.0, log=True), legal=Float(0.0, 1e4), doc="cost of each layer between", source="Rasmus 2015: .1"
    )
    logit_weight: float = knob(
        0.1, Float(0.01, 3.0, log=True), legal=Float(0.0, 1e4), doc="cost of the logits", source="Rasmus 2015: .1"
    )


@contextmanager
def noisy(model: nn.Module, sd: float, stream: tuple[RandomStream, ...]) -> Iterator[None]:
    """Every normalisation layer inside adds Gaussian noise to what it normalises. One stream for each batch among the rows.

    The noise comes before the layer's own scale (h = scale (z + noise) + shift), which so cannot outgrow it.
    """

    def hook(name: str) -> Any:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            noise = sd * normal(output.shape[1:], tuple(each.fork(name) for each in stream))
            scale = layer.weight
            if isinstance(scale, Tensor):  # one a channel, which LayerNorm has last and the others first
                noise = noise * (scale if isinstance(layer, nn.LayerNorm) else scale.view(-1, *[1] * (output.dim() - 2)))
            return output + noise.to(output.dtype)

        return add

    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    handles = [layer.register_forward_hook(hook(name)) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def normal(shape: torch.Size, stream: tuple[RandomStream, ...]) -> Tensor:
    """Standard normal [B, *shape], the rows of one or several batches."""
    return torch.cat([each.normal(*shape) for each in stream])


class Combinator(nn.Module):
    """g(z~, u) = (z~ - m(u)) v(u) + m(u), with m(u) = a1 sigmoid(a2 u + a3) + a4 u + a5 and v alike: the Gaussian denoiser."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
        self.a = nn.Parameter(start.repeat_interleave(channels))  # flat, so that weight decay leaves it alone

    def forward(self, noisy: Tensor, above: Tensor) -> Tensor:
        """z~ and u, both [B, c, h, w], to the reconstruction of the same shape."""
        a = self.a.view(10, 1, -1, 1, 1)
        mean = a[0] * torch.sigmoid(a[1] * above + a[2]) + a[3] * above + a[4]
        share = a[5] * torch.sigmoid(a[6] * above + a[7]) + a[8] * above + a[9]
        return (noisy - mean) * share + mean


class Decoder(nn.Module):
    """The way down. Levels are ordered from the image (0) to the logits (L)."""

    def __init__(self, shapes: list[tuple[int, int, int]]) -> None:
        """
        Args:
            shapes: (c, h, w) of every level; the logits are (K, 1, 1).
        """
        super().__init__()
        self.sizes = [shape[1:] for shape in shapes]
        channels = [shape[0] for shape in shapes]
        self.down = nn.ModuleList()
        for own, above in pairwise(shapes):
            kernel = 3 if min(above[1:]) > 1 else 1
            self.down.append(nn.Conv2d(above[0], own[0], kernel, padding=kernel // 2, bias=False))
        # Statistics of the batch only, and those of all workers once the loop has synchronised them.
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, affine=False, track_running_stats=False) for c in channels)
        self.combinators = nn.ModuleList(Combinator(c) for c in channels)

    def normalised(self, levels: list[Tensor]) -> list[Tensor]:
        """Every level [B, c, h, w] with mean 0 and variance 1 per channel, float32."""
        return [norm(level.float()) for norm, level in zip(self.norms, levels, strict=True)]

    def forward(self, noisy: list[Tensor], logits: Tensor) -> list[Tensor]:
        """Reconstructions of every level, from the normalised noisy levels and the noisy logits [B, K]."""
        above = logits.softmax(1)[:, :, None, None]  # B K 1 1
        out: list[Tensor] = []
        for level in range(len(noisy) - 1, -1, -1):
            if out:
                above = F.interpolate(self.down[level](out[-1]).float(), size=self.sizes[level])  # B c h w
            u = self.norms[level](above)  # B c h w
            out.append(self.combinators[level](noisy[level], u))  # B c h w
        return out[::-1]


class Ladder(Learner):
    """A classifier and its decoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment(config.augmentation, config.augmentation_strength)
        self.model = Classifier(context.new_encoder(), context.classes)
        self.register_buffer("mean", torch.tensor(context.data.mean).view(-1, 1, 1))  # C 1 1
        self.register_buffer("std", torch.tensor(context.data.std).view(-1, 1, 1))  # C 1 1
        if not self.model.encoder.parts():
            raise TrainingError(
                f"ladder needs an encoder that names its layers' modules, got {self.model.encoder.name or 'one'}"
            )
        self.names = ("image", *self.model.encoder.parts(), "logits")
        with torch.no_grad(), still_statistics(self.model):
            levels, _ = self.levels(torch.zeros(2, *context.shape))
        self.decoder = Decoder([(level.shape[1], level.shape[2], level.shape[3]) for level in levels])

    def levels(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every level [B, c, h, w] of one pass over images [B, C, H, W], and its logits [B, K]."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                found[name] = output

            return hook

        handles = []
        for name, modules in self.model.encoder.parts().items():
            last = [module for module in modules if not isinstance(module, nn.ParameterList)][-1]
            handles.append(last.register_forward_hook(keep(name)))
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        # Tokens [B, n, D] of a transformer are a map of n places.
        maps = [x if x.dim() == 4 else x.transpose(1, 2).unsqueeze(3) for x in found.values()]
        return [(images - self.mean) / self.std, *maps, logits[:, :, None, None]], logits

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def loss(self, step: Step) -> Loss:
        c = self.config
        labelled, pool = step.from_labelled(), step.from_pool()
        x, u = (self.augment(batch.images, batch.stream.fork("views")) for batch in (labelled, pool))  # B C H W, muB C H W
        images = torch.cat([x, u])  # B+muB C H W
        stream = labelled.stream.fork("noise"), pool.stream.fork("noise")
        with torch.no_grad():
            clean, _ = self.levels(images)  # L+1 of B+muB c h w
            z = self.decoder.normalised(clean)
        noise = c.noise * self.std * normal(images.shape[1:], stream)
        with noisy(self.model, c.noise, stream), still_statistics(self.model):
            dirty, logits = self.levels(images + noise)  # L+1 of B+muB c h w, B+muB K
        rebuilt = self.decoder(self.decoder.normalised(dirty), logits)  # L+1 of B+muB c h w
        costs = [(one - other).square().mean() for one, other in zip(rebuilt, z, strict=True)]
        supervised = F.cross_entropy(logits[: len(x)], labelled.labels())
        weights = [c.image_weight, *[c.layer_weight] * (len(costs) - 2), c.logit_weight]
        total = supervised + torch.stack([weight * cost for weight, cost in zip(weights, costs, strict=True)]).sum()
        parts = {f"cost_{name}": cost.detach() for name, cost in zip(self.names, costs, strict=True)}
        return Loss(total, {"supervised": supervised.detach(), **parts})

    def encoder(self) -> Encoder:
        return self.model.encoder

    def predictor(self) -> nn.Module:
        return self.model

    def optimizer(self) -> Optimizer:
        return self.config.adamw()


METHOD = Method(
    name="ladder",
    family="semisup",
    paper="Rasmus et al. 2015, arXiv:1507.02672",
    summary="noisy layers are denoised from the top down towards the clean ones",
    config=Config,
    learner=Ladder,
    uses_labels=True,
)
