"""CLIP: images and their captions find each other.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv:2103.00020.
Symmetric cross-entropy over the N x N cosines of image and text embeddings times a learned scale. Classifiers come from text:
`zero_shot` turns prompts for each class into one. Captions made from class names are labels; the data hides them with these.

Deviations: AdamW with the study's encoder and a small word transformer; words are attended to both ways and averaged, instead
of a causal transformer read at its last token; identical captions in a batch count as one caption with several images;
images are translated (and mirrored where that keeps their meaning), not cropped, since captions speak of places.
Raises: TrainingError where the data has no captions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, Feeds, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier, CosineHead
from methods.parts.losses.precision import full_precision
from methods.parts.text import TextEncoder
from methods.selfsup.shared import SelfConfig, beside
from methods.world import World
from search_spaces.domains import Float, Int, knob

LARGEST_SCALE = 100.0
"""The learned scale is clipped there (Radford 2021, section 2.5)."""


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.07, Float(0.03, 0.5, log=True), legal=Float(0.01, 10.0), doc="of the softmax at the start; learned from there",
        source="Radford 2021: .07",
    )  # fmt: skip
    embedding: int = knob(128, None, legal=Int(2, 4096), unit="units", doc="width shared by both", source="Radford 2021: 512")
    text_width: int = knob(64, None, legal=Int(4, 2048), unit="units", doc="of the text tower", source="Radford 2021: 512")
    text_depth: int = knob(2, None, legal=Int(0, 24), unit="blocks", doc="depth of the text tower", source="Radford 2021: 12")


@full_precision
def caption_loss(image: Tensor, text: Tensor, tokens: Tensor, scale: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Mean of both directions' cross-entropies over rows with a caption, and the share of images that find theirs.

    Args:
        image, text: float [B, D] of unit length.
        tokens: int64 [B, L]; equal rows are one caption, rows of 0 are missing.
        scale: multiplies the cosines.
        world: the workers.
    """
    images, texts, all_tokens = world.gather(image), world.gather(text), world.gather(tokens)  # G D, G D, G L
    valid, known = tokens.any(1), all_tokens.any(1)  # B, G
    same = (tokens[:, None] == all_tokens).all(2) & known  # B G
    target = same / same.sum(1, keepdim=True).clamp_min(1)
    count = world.mean(valid.sum().float()).clamp_min(1 / world.size)

    def direction(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = (scale * query @ keys.T).masked_fill(~known, -1e4)  # B G
        each = -(target * logits.log_softmax(1)).sum(1)
        found = same.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        return (each * valid).sum() / count, (found & valid).sum() / count

    (to_text, found), (to_image, _) = direction(image, texts), direction(text, images)
    return (to_text + to_image) / 2, found.detach()


class CLIP(Learner):
    """Image and text towers, a projection each, and the learned scale."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        tokens = context.data.tokens
        if tokens is None or not tokens.any():
            raise TrainingError("clip learns from captions, and this data has none; add a caption column or leave clip out")
        self.config = config
        self.augment = context.augment("weak", config.augmentation_strength)
        # Captions made from class names are there for labelled images only; then these are the ones to draw.
        hidden = context.data.label < 0
        self.from_labelled = bool((~hidden).any()) and bool(hidden.any()) and not tokens[hidden].any()
        self.backbone = context.new_encoder()
        self.text = TextEncoder(int(tokens.max()) + 1, tokens.shape[1], config.text_width, config.text_depth)
        self.image_head = nn.Linear(self.backbone.dim, config.embedding, bias=False)
        self.text_head = nn.Linear(config.text_width, config.embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def feeds(self) -> Feeds:
        size = self.config.batch_size
        return Feeds(labelled=size) if self.from_labelled else Feeds(pool=size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled() if self.from_labelled else step.from_pool()
        assert batch.tokens is not None, "the data has captions"
        x = self.augment(batch.images, batch.draws)  # B C H W
        image = F.normalize(self.image_head(self.backbone(x)).float(), dim=1)  # B D
        text = F.normalize(self.text_head(self.text(batch.tokens)).float(), dim=1)  # B D
        scale = self.log_scale.exp().clamp_max(LARGEST_SCALE)
        total, found = caption_loss(image, text, batch.tokens, scale, step.world)
        return Loss(total, {"pretext_accuracy": found, "temperature": 1 / scale.detach()})

    @torch.no_grad()
    def zero_shot(self, tokens: Tensor) -> Classifier:
        """A classifier from prompts: int64 [K, T, L], T prompts for each of K classes, in the captions' numbering."""
        text = F.normalize(self.text_head(self.text(tokens.flatten(0, 1))).float(), dim=1).unflatten(0, tokens.shape[:2])
        scale = self.log_scale.exp().clamp_max(LARGEST_SCALE)
        head = CosineHead(text.shape[2], text.shape[0], temperature=float(1 / scale)).to(text.device)
        head.weight.copy_(text.mean(1))
        return Classifier(self.backbone, nn.Sequential(self.image_head, head))

    def encoder(self) -> Encoder:
        return self.backbone

    def projector(self) -> nn.Module:
        return self.image_head

    def optimizer(self) -> Optimizer:
        return self.config.adamw(clip=1.0)

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.draws))}


METHOD = Method(
    name="clip",
    family="selfsup",
    paper="Radford et al. 2021, arXiv:2103.00020",
    summary="images and their captions find each other",
    config=Config,
    learner=CLIP,
)
