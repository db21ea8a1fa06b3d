"""Images through networks, a batch at a time: embeddings and logits, taken from what is known where an encoder is frozen.

``remember`` tells this process the embeddings of all images of a set by a frozen encoder; from then on ``embed`` and
``logits_of`` look up what they would have computed. What is known belongs to that very encoder object and to that very
object of images, so a copy that is trained further knows nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from methods.data.records import Images, IntArray
from methods.data.views import SubsetImages
from methods.parts import heads
from methods.parts.encoders import Encoder
from methods.parts.joined import JoinedEncoder
from methods.parts.mirrored import MirroredEncoder, mirror
from methods.parts.modes import device_of, evaluating, threads
from search_spaces.domains import UserError

EMBED_BATCH = 256

FORWARD_BATCH = 32
"""Images that pass a network at a time on a CPU: more do not fit its caches."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of every image of a set by a frozen encoder.

    Attributes:
        images: the images.
        values: float16 or float32 [N, V, D], possibly memory-mapped; view 0 is the image, view 1 its mirror image.
        memo: what feature methods computed of the values (see ``methods.features.Features``).
    """

    images: Images
    values: Tensor
    memo: MutableMapping[Hashable, object] = field(default_factory=dict)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, list[Embedded]] = weakref.WeakKeyDictionary()


def remember(encoder: Encoder, embedded: Embedded) -> None:
    """Lets ``embed`` and ``logits_of`` look up these embeddings wherever they meet this encoder and these images.

    The encoder must stay as it is: its weights are not looked at again.
    """
    assert embedded.values.shape[0] == len(embedded.images), "each image has its embedding"
    _KNOWN[encoder] = [known for known in _KNOWN.get(encoder, []) if known.images is not embedded.images] + [embedded]


def recall(encoder: Encoder, images: Images) -> Embedded | None:
    """What ``remember`` was told of this encoder and these images, or of images that these are chosen from; or None."""
    known = next((known for known in _KNOWN.get(encoder, ()) if known.images is images), None)
    if known is None and isinstance(images, SubsetImages) and (whole := recall(encoder, images.parent)) is not None:
        return _part_of(whole, images)
    return known


_PART = "part"


@dataclass(frozen=True, eq=False)
class _Part:
    rows: IntArray
    embedded: Embedded


def _part_of(whole: Embedded, images: SubsetImages) -> Embedded:
    """The embeddings of a choice of images. The newest choice alone is kept: each is a copy."""
    part = whole.memo.get(_PART)
    if not isinstance(part, _Part) or not np.array_equal(part.rows, images.rows):
        part = _Part(images.rows, Embedded(images, whole.values[torch.from_numpy(images.rows)]))
        whole.memo[_PART] = part
    return part.embedded


def _looked_up(encoder: Encoder, images: Images, index: IntArray) -> Tensor | None:
    """float32 [n, D] on the encoder's device where they are known; of a mirrored encoder where both views are, of a joined one
    where all its members' are.
    """
    if isinstance(encoder, JoinedEncoder):
        each = [_looked_up(member, images, index) for member in encoder.composed_of()]
        found = [z for z in each if z is not None]
        return encoder.joined(found) if len(found) == len(each) else None
    both = isinstance(encoder, MirroredEncoder)
    known = recall(encoder.inside if isinstance(encoder, MirroredEncoder) else encoder, images)
    if known is None or (both and known.values.shape[1] < 2):
        return None
    rows = known.values[torch.from_numpy(np.ascontiguousarray(index)).to(known.values.device)].float()
    return (rows[:, :2].mean(1) if both else rows[:, 0]).to(device_of(encoder))


def pooled(features: Tensor) -> Tensor:
    """float [B, D] from a feature map [B, D, h, w] by its global mean; vectors pass."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def features_of(encoder: Encoder, images: Tensor, layer: str | None) -> Tensor:
    """float [B, D]: the embedding, or a layer's map globally pooled."""
    return encoder(images) if layer is None else pooled(encoder.maps(images)[layer])


def check_layer(encoder: Encoder, layer: str | None) -> None:
    if layer is not None and layer not in encoder.layers:
        raise UserError(f"layer must be one of this encoder's layers, {', '.join(encoder.layers)}, got {layer!r}")


def batches(images: Images, index: IntArray, batch: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Rows and uint8 images [b, C, H, W] on ``device`` of the given positions, in order."""
    positions = torch.from_numpy(np.ascontiguousarray(index))
    for start in range(0, len(index), batch):
        rows = slice(start, min(start + batch, len(index)))
        yield rows, images.take(positions[rows]).to(device)


def run_over(
    call: Callable[[Tensor], Tensor],
    images: Images,
    index: IntArray,
    device: torch.device,
    batch: int = EMBED_BATCH,
    parallel: bool = False,
) -> Tensor:
    """float32 [n, ...]: ``call`` on the images at ``index``, a batch at a time, without gradient.

    Args:
        batch: images at a time, at the most; on a CPU as many as fit its caches.
        parallel: whether ``call`` may run in several threads at once, as ``embed_views`` does on a CPU.
    """
    assert len(index), "nothing to compute on"
    cpu, cores = device.type == "cpu", torch.get_num_threads()
    positions = torch.from_numpy(np.ascontiguousarray(index)).split(min(batch, FORWARD_BATCH) if cpu else batch)

    def one(rows: Tensor) -> Tensor:
        # Whether gradients are kept belongs to a thread.
        with torch.no_grad():
            return call(images.take(rows).to(device)).float()

    with torch.no_grad():
        if not (cpu and parallel and min(cores, len(positions)) > 1):
            return torch.cat([one(rows) for rows in positions])
        with threads(1), ThreadPoolExecutor(cores) as pool:
            return torch.cat(list(pool.map(one, positions)))


def embed(encoder: Encoder, images: Images, index: IntArray, batch: int = EMBED_BATCH, layer: str | None = None) -> Tensor:
    """float32 [n, D] on the encoder's device: embeddings (or a pooled layer) of the images at ``index``.

    Raises:
        UserError: the encoder has no such layer.
    """
    check_layer(encoder, layer)
    known = _looked_up(encoder, images, index) if layer is None else None
    if known is not None:
        return known
    with evaluating(encoder):
        return run_over(
            lambda x: features_of(encoder, x, layer), images, index, device_of(encoder), batch, parallel=layer is None
        )


def logits_of(predictor: nn.Module, images: Images, index: IntArray, batch: int = EMBED_BATCH) -> Tensor:
    """float32 [n, K] on the predictor's device: logits of the images at ``index``."""
    head, known = _head_on_known(predictor, images, index)
    with evaluating(predictor):
        if known is None:
            # Maps of layers are caught by hooks, which all threads would share.
            alone = any(getattr(module, "layer", None) is not None for module in predictor.modules())
            return run_over(predictor, images, index, device_of(predictor), batch, parallel=not alone)
        with torch.no_grad():
            return torch.cat([head(x).float() for x in known.split(4 * batch)])


def _head_on_known(predictor: nn.Module, images: Images, index: IntArray) -> tuple[nn.Module, Tensor | None]:
    """A classifier's head and the embeddings that it would be given, or None where these are not known."""
    if isinstance(predictor, heads.Classifier) or (isinstance(predictor, Classifier) and predictor.layer is None):
        return predictor.head, _looked_up(predictor.encoder, images, index)
    return predictor, None


def embed_views(
    encoder: Encoder, images: Images, views: int, bf16: bool = False, told: Callable[[int], None] | None = None
) -> Tensor:
    """float32 [N, V, D] on the CPU: all images, and mirrored where ``views`` is 2.

    On a CPU each of torch's threads takes batches of its own, decodes and embeds them: threads that share a batch wait for
    each other after every layer, which beside other work costs several times as much. On a GPU one batch is decoded while
    another is embedded.

    Args:
        bf16: compute by autocast to bf16.
        told: called with the number of images done, after every batch.
    """
    device = device_of(encoder)
    cpu = device.type == "cpu"
    workers, size = (torch.get_num_threads(), FORWARD_BATCH) if cpu else (2, EMBED_BATCH)
    values = torch.empty(len(images), views, encoder.dim)

    def one(rows: Tensor) -> int:
        # Inference mode and autocast belong to a thread.
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            x = images.take(rows).to(device)
            for view, shown in enumerate((x, mirror(x))[:views]):
                values[rows[0] : rows[-1] + 1, view] = encoder(shown).float().cpu()
        return len(rows)

    done = 0
    with evaluating(encoder), threads(1 if cpu else torch.get_num_threads()), ThreadPoolExecutor(workers) as pool:
        for count in pool.map(one, torch.arange(len(images)).split(size)):
            done += count
            if told is not None:
                told(done)
    return values


class Classifier(nn.Module):
    """An encoder and a head: images [B, C, H, W] -> logits [B, K]. The encoder is shared with whoever handed it over."""

    def __init__(self, encoder: Encoder, head: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        self.encoder, self.head, self.layer = encoder, head, layer

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(features_of(self.encoder, images, self.layer).float())
        return out
