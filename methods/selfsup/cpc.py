"""CPC: from the patches above, find the patches below among patches of all images.

van den Oord, Li & Vinyals 2018, "Representation learning with contrastive predictive coding", arXiv:1807.03748.
Overlapping patches are encoded one by one to z; a causal network sums up the rows so far to c; for each step k a matrix W_k
scores z k rows below c, W_k c . z, against the z of random patches, by InfoNCE.

Deviations: AdamW instead of Adam; the encoder's BatchNorm stays, and keeps the statistics of whole images. The context network
is a small stack of row-causal convolutions. Negatives are one random sample of the batch's patches for all predictions, not
drawn from the same image first. The embedding is the encoder's of the whole image, which the protocols then use; the paper
pools patches.
Raises: TrainingError where patches would be smaller than 4 pixels, or there are not more rows of patches than steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.contrast import sample_negative_indices
from methods.parts.encoders import Encoder
from methods.parts.losses.precision import full_precision
from methods.parts.patches import embedded_patches, overlapping_grid, patch_side
from methods.selfsup.shared import SelfConfig, beside
from methods.world import World
from search_spaces.domains import Float, Int, knob


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    batch_size: int = knob(
        64, Int(32, 256, power_of_two=True), legal=Int(2, 65536), unit="images", doc="images per step, dozens of patches each",
        source="van den Oord 2018: 256",
    )  # fmt: skip
    patch: float = knob(
        0.375, Float(0.2, 0.5), legal=Float(0.05, 0.5), unit="of the image's side", doc="patch side; patches overlap by half",
        source="van den Oord 2018: 64 of 256",
    )  # fmt: skip
    steps_ahead: int = knob(2, Int(1, 3), legal=Int(1, 12), unit="rows", doc="how far to predict", source="Oord 2018: 5")
    negatives: int = knob(
        512, Int(64, 2048, power_of_two=True), legal=Int(1, 65536), unit="patches", doc="negatives of all predictions",
        source="van den Oord 2018: 16 and up",
    )  # fmt: skip


class RowContext(nn.Module):
    """Patch embeddings [B, D, R, C] to contexts of the same shape that see their own row and the rows above, nothing below."""

    def __init__(self, dim: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.down = nn.Conv2d(dim, width, 1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, (2, 3), padding=(0, 1)) for _ in range(depth))
        self.width = width

    def forward(self, z: Tensor) -> Tensor:
        x = self.down(z)
        for layer in self.layers:
            x = x + layer(F.pad(x.relu(), (0, 0, 1, 0)))
        return x.relu()


@full_precision
def patch_nce(prediction: Tensor, z: Tensor, place: Tensor, noise: Tensor, noise_place: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of predictions against patches of the global batch.

    Args:
        prediction, z: float [M, D], predicted and true embeddings.
        place: int64 [M], where each true patch stands in the global batch.
        noise: float [K, D], sampled patches.
        noise_place: int64 [K], where they stand; a prediction's own patch among them does not count.
    Returns:
        the mean over predictions, and the share of those that score their own patch highest.
    """
    own = (prediction * z).sum(1, keepdim=True)  # M 1
    others = (prediction @ noise.T).masked_fill(place[:, None] == noise_place, float("-inf"))  # M K
    logits = torch.cat([own, others], dim=1)
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target), (logits.detach().argmax(1) == 0).float().mean()


class CPC(Learner):
    """Encoder of patches, context network, and a prediction matrix for each step."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.augment = context.augment("crop_flip", config.augmentation_strength)
        self.backbone = context.new_encoder()
        self.side = patch_side(context.shape, self.backbone, config.patch * min(context.shape[1:]), "cpc")
        rows = (context.shape[1] - self.side) // (self.side // 2) + 1
        if rows <= config.steps_ahead:
            raise TrainingError(
                f"cpc.steps_ahead must be less than the rows of patches, {rows}, got {config.steps_ahead}; lower it"
            )
        dim = self.backbone.dim
        self.context = RowContext(dim)
        self.predict = nn.ModuleList(nn.Linear(self.context.width, dim, bias=False) for _ in range(config.steps_ahead))

    def batch_spec(self) -> BatchSpec:
        return self.config.batch_spec()

    def embed(self, batch: Batch, number: int) -> Tensor:
        """Patch embeddings [B, R, C, D] on the grid of overlapping patches, their length that of a standard normal vector."""
        view = self.augment(batch.images, batch.stream.fork("view"))
        patches, (rows, columns) = overlapping_grid(view, self.side, self.side // 2)
        z = embedded_patches(self.backbone, patches.flatten(0, 1), batch.images, number)
        return F.layer_norm(z.view(len(batch), rows, columns, -1), z.shape[-1:])

    def loss(self, step: Step) -> Loss:
        batch = step.from_pool()
        z = self.embed(batch, step.number)  # B R C D
        b, rows, columns, dim = z.shape
        c = self.context(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # B R C E
        everyone = step.world.gather(z.reshape(-1, dim))  # G R C, D
        sample = sample_negative_indices(len(everyone), self.config.negatives, batch.stream.fork("negatives"))  # K
        noise = everyone[sample]  # K D
        place = self.places(b, rows, columns, step.world, z.device)  # B R C
        losses, accuracies = [], []
        for k, matrix in enumerate(self.predict, start=1):
            prediction = matrix(c[:, :-k]) * dim**-0.5  # B R-k C D
            true, where = z[:, k:], place[:, k:]
            loss, right = patch_nce(prediction.flatten(0, 2), true.flatten(0, 2), where.flatten(), noise, sample)
            losses.append(loss)
            accuracies.append(right)
        return Loss(torch.stack(losses).mean(), {"pretext_accuracy": torch.stack(accuracies).mean()})

    @staticmethod
    def places(b: int, rows: int, columns: int, world: World, device: torch.device) -> Tensor:
        """int64 [B, R, C]: where this worker's patches stand among all workers'."""
        count = b * rows * columns
        return (torch.arange(count, device=device) + world.rank * count).view(b, rows, columns)

    def encoder(self) -> Encoder:
        return self.backbone

    def optimizer(self) -> Optimizer:
        return self.config.adamw(clip=1.0)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.stream.fork("view")))}


METHOD = Method(
    name="cpc",
    family="selfsup",
    paper="van den Oord et al. 2018, arXiv:1807.03748",
    summary="predict the patches below from the patches above",
    config=Config,
    learner=CPC,
)
