"""The file that an encoder is exported to, and the record in it.

A record holds tensors and plain values only; that of a composed encoder holds its inner encoders' records, without their
states, which are part of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.encoder import Encoder
from methods.parts.architectures import AROUND, COMPOSED, architecture, is_named
from methods.parts.augment import crop, to_float
from methods.parts.composites import LAB_STD
from methods.parts.weights import WeightsFile, cpu_state, load_state, name_of, read_weights, write_weights
from search_spaces.domains import UserError

Record = dict[str, Any]


def save_encoder(file: WeightsFile, encoder: Encoder) -> None:
    """Writes a file that ``load_encoder`` can rebuild the encoder from, without any other knowledge.

    Raises:
        UserError: the encoder was not built by name.
    """
    write_weights(file, encoder_record(encoder))


def load_encoder(file: WeightsFile) -> Encoder:
    """The encoder in a file of ``save_encoder``, on the CPU and in evaluation mode.

    Raises:
        UserError: not such a file.
    """
    return encoder_from(read_weights(file), name_of(file))


def can_be_saved(encoder: Encoder) -> bool:
    """Whether a file can rebuild it: not where it, or one inside it, is a network of the user's own."""
    return (is_named(encoder.name) or encoder.name in COMPOSED) and all(can_be_saved(inner) for inner in encoder.composed_of())


def encoder_record(encoder: Encoder) -> Record:
    """What rebuilds the encoder, where its weights began, and its state."""
    return {**_described(encoder), "origin": origin_of(encoder), "state": cpu_state(encoder)}


def _described(encoder: Encoder) -> Record:
    """Name, image shape, statistics, options and the same of inner encoders."""
    if not can_be_saved(encoder):
        raise UserError(f"only encoders built by name can be saved, got {type(encoder).__name__}; use build_encoder")
    mean, std = (encoder.get_buffer(f"normalise.{name}").flatten().tolist() for name in ("mean", "std"))
    return {
        "encoder": encoder.name,
        "shape": list(encoder.shape),
        "mean": mean,
        "std": std,
        "options": encoder.options(),
        "inside": [_described(inner) for inner in encoder.composed_of()],
    }


def encoder_from(record: Record, source: str) -> Encoder:
    """The inverse of ``encoder_record``; ``source`` names it in errors.

    In evaluation mode it resizes images of another size to the one it was trained at, as ``labelwise predict`` does: at
    another scale its embeddings would be of no use. (``maps`` takes images as they are.)
    """
    wanted = ("encoder", "shape", "mean", "std", "options", "state")
    missing = [key for key in wanted if key not in record]
    if missing:
        raise UserError(
            f"{source} is not an exported encoder: it lacks {', '.join(missing)}; use it as init of a named encoder"
        )
    encoder = _rebuilt(current(record))
    load_state(encoder, record["state"], source)
    encoder.origin = record.get("origin", "")
    encoder.register_forward_pre_hook(_at_own_size)
    return encoder.eval()


def bare(record: Record) -> Record:
    """The record of the encoder inside those that change how images are seen (views, frames); any other as it is."""
    while record.get("encoder") in AROUND:
        state = {k.removeprefix("inside."): v for k, v in record["state"].items() if k.startswith("inside.")}
        record = {**record["inside"][0], "origin": record.get("origin", ""), "state": state}
    return record


_EARLIER = {
    "pair": ("of", ("views",)),
    "lab": ("of", ()),
    "grey": ("of", ()),
    "averaged": ("of", ("test_views",)),
    "framed": ("inside", ()),
    "joined": ("kind", ("unit",)),
    "mirrored": ("seen", ()),
}
"""Composers whose earlier records had their inner encoders' options among their own: where the inner name stood, and what is
the composer's own."""


def current(record: Record) -> Record:
    """A record as this version writes it.

    Raises:
        UserError: it names inner encoders in no way that this version knows.
    """
    name = record.get("encoder")
    if "inside" in record or name not in COMPOSED:
        return {"inside": [], **record}
    if name not in _EARLIER:
        raise UserError(f"an encoder composed of others holds their records, got {name} without any; export it again")
    key, mine = _EARLIER[name]
    options = dict(record["options"])
    inner, own = options.pop(key), {option: options.pop(option) for option in mine}
    count = options.pop("members") if name == "joined" else 2 if name in ("pair", "lab") else 1
    seen = [{about: record[about] for about in ("shape", "mean", "std")}] * count
    if name == "lab":
        size = record["shape"][1:]
        seen = [{"shape": [n, *size], "mean": [0.5] * n, "std": list(std)} for n, std in LAB_STD.items()]
    return {**record, "options": own, "inside": [current({"encoder": inner, **each, "options": options}) for each in seen]}


def _rebuilt(record: Record) -> Encoder:
    """An encoder with fresh weights by its record."""
    name, mean, std = record["encoder"], tuple(record["mean"]), tuple(record["std"])
    c, h, w = record["shape"]
    if name not in COMPOSED:
        return architecture(name, (c, h, w), mean, std, 1.0, record["options"])
    return COMPOSED[name]([_rebuilt(inner) for inner in record["inside"]], mean, std, record["options"])


def _at_own_size(encoder: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    """The centre of float or uint8 images [B, C, H, W], as large as the encoder's proportions allow, at its own size."""
    assert isinstance(encoder, Encoder)
    if encoder.training or len(inputs) != 1 or inputs[0].dim() != 4 or inputs[0].shape[2:] == encoder.shape[1:]:
        return None
    (images,) = inputs
    own, given = encoder.shape[1:], images.shape[2:]
    images = images if images.is_floating_point() else images.to(torch.uint8)
    scale = min(given[0] / own[0], given[1] / own[1])
    height, width = own[0] * scale, own[1] * scale
    box = torch.tensor([[(given[0] - height) / 2, (given[1] - width) / 2, height, width]], device=images.device)
    return (crop(to_float(images), box.expand(len(images), 4), own),)


def origin_of(encoder: Encoder) -> str:
    """Source and licence of the weights that it, or an encoder inside it, began from; empty from nothing."""
    return next((part.origin for part in encoder.modules() if isinstance(part, Encoder) and part.origin), "")
