"""CLIP: images and their captions find each other.

Radford et al. 2021, "Learning transferable visual models from natural language supervision", arXiv:2103.00020.
Symmetric cross-entropy over the N x N cosines of image and text embeddings times a learned scale. Classifiers come from text:
`zero_shot` makes one from the classes' names. Data without captions is trained on prompts made of the class names of labelled
images. Such captions, like those that spell out the class, are labels: they come with the label budget and count as such.

Deviations: AdamW with the study's encoder and a small word transformer; words are attended to both ways and averaged, instead
of a causal transformer read at its last token; identical captions in a batch count as one caption with several images;
images are translated (and mirrored where that keeps their meaning), not cropped, since captions speak of places; words of a
prompt that no caption has are left out, since their embedding was never trained.
Raises: TrainingError where the data has neither captions nor labelled images of named classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.batch import Batch, BatchSpec, Step
from methods.contracts import Context, Learner, Loss, Method, Optimizer, TrainingError
from methods.data.captions import encode, vocabulary
from methods.parts.encoders import Encoder
from methods.parts.heads import Classifier, CosineHead
from methods.parts.losses.precision import full_precision
from methods.parts.text import TEMPLATES, TextEncoder, prompts
from methods.selfsup.shared import SelfConfig, beside
from methods.world import World
from search_spaces.domains import Choice, Float, Int, UserError, knob

NAME_ALONE = ("{label}",)
"""With captions of the data's own the name is the prompt: other words would stand in no caption."""

PLACES = 32
"""Words a prompt may have, however short the captions are."""

LARGEST_SCALE = 100.0
"""The learned scale is clipped there (Radford 2021, section 2.5)."""


@dataclass(frozen=True)
class Config(SelfConfig):
    """Knobs."""

    temperature: float = knob(
        0.07, Float(0.03, 0.5, log=True), legal=Float(0.01, 10.0), doc="of the softmax at the start; learned from there",
        source="Radford 2021: .07",
    )  # fmt: skip
    templates: str = knob(
        "several", Choice(("several", "one")), doc="how class names become captions, in data without",
        source="Radford 2021: 80 for ImageNet",
    )  # fmt: skip
    embedding: int = knob(128, None, legal=Int(2, 4096), unit="units", doc="width shared by both", source="Radford 2021: 512")
    text_width: int = knob(64, None, legal=Int(4, 2048), unit="units", doc="of the text tower", source="Radford 2021: 512")
    text_depth: int = knob(2, None, legal=Int(0, 24), unit="blocks", doc="depth of the text tower", source="Radford 2021: 12")


@full_precision
def caption_loss(image: Tensor, text: Tensor, tokens: Tensor, scale: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Mean of both directions' cross-entropies over rows with a caption, and the share of images that find theirs.

    Args:
        image, text: float [B, D] of unit length.
        tokens: int64 [B, S], the captions or numbers for them; equal rows are one caption, rows of 0 are missing.
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

    phrasings: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__()
        data = context.data
        self.config = config
        self.augment = context.augment("weak", config.augmentation_strength)
        self.from_names = data.tokens is None and bool(data.names)
        if self.from_names:
            self.templates = TEMPLATES[:1] if config.templates == "one" else TEMPLATES
            texts = prompts(data.names, self.templates)
            self.words = vocabulary(texts)
            made = torch.from_numpy(encode(texts, self.words)).unflatten(0, (len(data.names), -1))  # K T L
            self.register_buffer("phrasings", made, persistent=False)
            longest = made.shape[2]
        elif data.tokens is not None and data.tokens.any():
            self.templates, self.words, longest = NAME_ALONE, data.words, data.tokens.shape[1]
        else:
            raise TrainingError(
                "clip needs images with captions, or with labels and class names, and got none; add captions or leave clip out"
            )
        # Captions that are labels come with labelled images only.
        self.from_labelled = METHOD.reads_labels(data)
        self.backbone = context.new_encoder()
        self.text = TextEncoder(len(self.words) + 1, max(longest, PLACES), config.text_width, config.text_depth)
        self.image_head = nn.Linear(self.backbone.dim, config.embedding, bias=False)
        self.text_head = nn.Linear(config.text_width, config.embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def batch_spec(self) -> BatchSpec:
        size = self.config.batch_size
        return BatchSpec(labelled=size) if self.from_labelled else BatchSpec(pool=size)

    def loss(self, step: Step) -> Loss:
        batch = step.from_labelled() if self.from_labelled else step.from_pool()
        tokens, same = self.captions(batch)  # B L, B S
        x = self.augment(batch.images, batch.stream)  # B C H W
        image = F.normalize(self.image_head(self.backbone(x)).float(), dim=1)  # B D
        text = F.normalize(self.text_head(self.text(tokens)).float(), dim=1)  # B D
        scale = self.log_scale.exp().clamp_max(LARGEST_SCALE)
        total, found = caption_loss(image, text, same, scale, step.world)
        return Loss(total, {"pretext_accuracy": found, "temperature": 1 / scale.detach()})

    def captions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """int64 [B, L], and int64 [B, S] that are equal where captions say the same."""
        if not self.from_names:
            assert batch.tokens is not None, "the data has captions"
            return batch.tokens, batch.tokens
        label = batch.labels()
        return self.phrasings[label, batch.stream.integers(len(self.templates))], label[:, None] + 1

    @torch.no_grad()
    def zero_shot(self, classes: Sequence[str]) -> Classifier:
        """Images [B, C, H, W] to logits over the named classes: each is the mean of its prompts' embeddings (section 3.1.4).

        Raises:
            UserError: names that in words of the captions are empty or the same.
        """
        told: dict[tuple[int, ...], str] = {}
        for name, row in zip(classes, encode(classes, self.words)[:, : len(self.text.places)].tolist(), strict=True):
            if not any(row):
                raise UserError(f"zero_shot needs class names in words of the captions, got {name!r}; rename it or use knn")
            other = told.setdefault(tuple(row), name)
            if other != name:
                raise UserError(
                    f"zero_shot needs class names that differ in words of the captions, got {other!r} and {name!r};"
                    " rename one or use knn"
                )
        texts = prompts(classes, self.templates)
        device = self.log_scale.device
        tokens = torch.from_numpy(encode(texts, self.words))[:, : len(self.text.places)].to(device)  # KT L
        text = F.normalize(self.text_head(self.text(tokens)).float(), dim=1).unflatten(0, (len(classes), -1))  # K T D
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
        return {"original | view": beside(batch.images, self.augment(batch.images, batch.stream))}


METHOD = Method(
    name="clip",
    family="selfsup",
    paper="Radford et al. 2021, arXiv:2103.00020",
    summary="images and their captions find each other",
    config=Config,
    learner=CLIP,
    uses_captions=True,
)
