"""Frozen features of a study: pool and test embedded once, before the search, kept in the run folder and for later studies.

::

    features/index.json             which encoder, at which size, how many views, and where its embeddings lie
    features/pool/DIGEST.npy        float16 or float32 [N, V, D], which every slot memory-maps
    features/test/DIGEST.npy        the same of the test images, read by whoever tests, and by no slot

The digest is of everything that embeddings depend on: encoder and weights, size, views, precision, and the images.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.storage import LocalStorage, MissingKey, Storage
from methods.contracts import Method
from methods.data.decode import StreamedImages
from methods.data.records import ArrayImages, Images, LabelledSubset, TrainData
from methods.parts.encoders import Encoder, EncoderSpec, shown_at
from methods.parts.modes import device_of, evaluating, threads
from methods.protocols.embeddings import FORWARD_BATCH, Embedded, embed_views, recall, remember
from methods.training import computes_bf16
from methods.training.on_features import frozen_encoder
from orchestrator.engine.records import FeatureTable, SlotSetup, TrialSpec
from orchestrator.feature_cache import FeatureCache

INDEX = "features/index.json"

FORMAT = "1"
"""Goes into every digest; raised where embeddings are computed in another way."""

SHARE, SHARE_ALONE = 0.25, 0.4
"""Of a budget on the clock, what embedding may take at the most; and where nothing else trains, since fits take seconds."""

SIZES = (160, 128, 96)
"""Pixels a side that are tried in turn where larger images would take too long."""

PROBED = 4 * FORWARD_BATCH
"""Images a thread from which the rate is measured: each thread embeds batches of its own."""

EVERY = 5.0
"""Seconds between lines of progress."""

Say = Callable[[str], None]


def share_of_clock(methods: Iterable[Method]) -> float:
    """Of a budget on the clock, what embedding may take for a study of these methods."""
    return SHARE_ALONE if all(method.on_features for method in methods) else SHARE


def showing_within(
    images: int, views: int, sizes: tuple[int, ...], seconds_of: Callable[[int], float], limit: float
) -> tuple[int, int]:
    """How many views of each image to embed, and at which of ``sizes`` (descending), so that it takes ``limit`` seconds.

    The mirrored view is dropped first, then the size is reduced step by step; one view at the smallest size is embedded
    however long that takes.

    Args:
        images: to embed.
        views: at the most.
        seconds_of: what one image at a size takes, measured when it is asked.
        limit: seconds, infinite where nothing is in a hurry.
    """
    for size in sizes:
        each = images * seconds_of(size) if limit < float("inf") else 0.0
        for count in range(views, 0, -1) if size == sizes[0] else (1,):
            if count * each <= limit:
                return count, size
    return 1, sizes[-1]


def embedded(
    setup: SlotSetup, test: LabelledSubset | None, processors: int, limit: float = float("inf"), say: Say = print
) -> SlotSetup:
    """The setup with the embeddings of its feature methods' encoders, which are now in its storage.

    Args:
        setup: what the slots share.
        test: the test images, where there are any.
        processors: threads to embed with.
        limit: seconds that embedding may take, divided among the encoders.
        say: told what is done, a line each.
    """
    specs = setup.frozen()
    if not specs:
        return setup
    # A network of one's own stands in no index: what it answers is looked at again, and what it embedded is found by that.
    known = {table.asked: table for table in read_index(setup.storage)}
    tables: list[FeatureTable] = []
    began = time.perf_counter()
    with threads(processors):
        for spec in specs:
            # What the encoders before it have left is divided among it and those to come.
            spent = time.perf_counter() - began if tables else 0.0
            share = max(limit - spent, 0.0) / (len(specs) - len(tables))
            tables.append(known.get(spec) or _embedded(setup, spec, test, share, say))
    named = [table for table in tables if table.spec.module is None]
    setup.storage.put(INDEX, json.dumps([asdict(table) for table in named], indent=2).encode())
    return replace(setup, features=tuple(tables))


def read_index(storage: Storage) -> list[FeatureTable]:
    """The tables that lie in a run folder."""
    try:
        rows = json.loads(storage.get(INDEX))
    except MissingKey:
        return []
    return [_table(**row) for row in rows]


def _table(asked: dict[str, Any], spec: dict[str, Any], size: list[int] | None = None, **others: Any) -> FeatureTable:
    shown = None if size is None else (size[0], size[1])
    return FeatureTable(EncoderSpec(**asked), EncoderSpec(**spec), size=shown, **others)


def _embedded(setup: SlotSetup, asked: EncoderSpec, test: LabelledSubset | None, limit: float, say: Say) -> FeatureTable:
    """One encoder's table, embedded or taken from the cache."""
    data, device = setup.split.train, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = setup.precision == "bf16" or (setup.precision == "auto" and computes_bf16(device))
    tested = None if test is None else test.data.images
    count = len(data) + (0 if tested is None else len(tested))

    def encoder_at(size: int) -> tuple[EncoderSpec, Encoder]:
        spec = asked if size == 0 else replace(asked, size=size)
        return spec, frozen_encoder(spec, data, device)

    def seconds_of(size: int) -> float:
        encoder, sample = encoder_at(size)[1], _Sample(data.images)
        embed_views(encoder, sample, 1, bf16)  # warms up
        started = time.perf_counter()
        embed_views(encoder, sample, 1, bf16)
        return (time.perf_counter() - started) / len(sample)

    given = frozen_encoder(asked, data, device)
    own = given.options().get("size")
    side = max(own) if isinstance(own, list) else 0
    # Size 0 is the encoder's own, which comes first.
    hurry = given.resizable and asked.size is None and limit < float("inf")
    sizes = (0, *(size for size in SIZES if size < side)) if hurry else (0,)
    most = 2 if data.flip else 1
    digests = [None if i is None else digest_of(i) for i in (data.images, tested)]
    cache = FeatureCache.of_user()

    def keys_at(views: int, size: int) -> tuple[str | None, str | None]:
        encoder = encoder_at(size)[1]
        pool, asked_of = (None if i is None else _digest(encoder, i, views, bf16) for i in digests)
        return pool, asked_of

    # What an earlier study has embedded costs nothing, so that no limit holds for it.
    views, size = most, 0
    keys = keys_at(views, size)
    if not all(key is None or cache.holds(key) for key in keys):
        views, size = showing_within(count, most, sizes, seconds_of, limit)
        keys = keys_at(views, size)
    spec, encoder = encoder_at(size)
    label = spec.name or "a network given in Python"
    named = f"{label} at {size or side} pixels" if side else label
    what = f"{count:,} images, {'and mirrored, ' if views == 2 else ''}{named}, {'bf16' if bf16 else 'fp32'}"
    if (views, size) != (most, 0):
        say(f"embedding {what}: both views or larger images would take more than {limit:.0f} s")
    places = []
    for part, images, key in zip(("pool", "test"), (data.images, tested), keys, strict=True):
        place = "" if key is None else f"features/{part}/{key}.npy"
        places.append(place)
        if images is None or key is None or place in setup.storage.list(place):
            continue
        setup.storage.put(place, _raw(cache, key, encoder, images, views, bf16, part, what, say))
    return FeatureTable(asked, spec, views, places[0], places[1], shown_at(encoder))


def _raw(
    cache: FeatureCache,
    key: str,
    encoder: Encoder,
    images: Images,
    views: int,
    bf16: bool,
    part: str,
    what: str,
    say: Say,
) -> bytes | memoryview:
    """The .npy file of embeddings, of an earlier study or computed now."""
    raw: bytes | memoryview | None = cache.get(key)
    if raw is not None:
        say(f"embeddings of the {part} are known from an earlier study")
        return raw
    values = embed_views(encoder, images, views, bf16, _Told(f"embedding the {part}, {what}", len(images), say))
    raw = _bytes_of(values, bf16)
    cache.put(key, raw)
    return raw


def embedded_outside(spec: EncoderSpec, data: TrainData, images: Images, part: str, say: Say = print) -> Tensor:
    """float16 or float32 [N, V, D] of images outside any study, V = 2 where a mirrored image keeps its meaning.

    Args:
        spec: a pretrained encoder.
        data: whose shape and statistics the encoder is built for.
        images: to embed, of that shape.
        part: what they are, for people.
        say: told what is done, a line each.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, bf16, views = frozen_encoder(spec, data, device), computes_bf16(device), 2 if data.flip else 1
    key = _digest(encoder, digest_of(images), views, bf16)
    raw = _raw(FeatureCache.of_user(), key, encoder, images, views, bf16, part, f"{len(images):,} images", say)
    return torch.from_numpy(np.load(io.BytesIO(raw), allow_pickle=False))


class _Told:
    """Says how far it is, every ``EVERY`` seconds and at the end."""

    def __init__(self, what: str, total: int, say: Say) -> None:
        self.what, self.total, self.say = what, total, say
        self.started = self.last = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self.last >= EVERY or done == self.total:
            self.last = now
            rate = done / max(now - self.started, 1e-9)
            self.say(f"{self.what}: {done:,} of {self.total:,}, {rate:,.0f} images a second")


class _Sample(Images):
    """Evenly spaced images of a set."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.chosen = torch.linspace(0, len(images) - 1, min(PROBED * torch.get_num_threads(), len(images))).round().long()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, index: Tensor) -> Tensor:
        return self.images.take(self.chosen[index])


def digest_of(images: Images, chunk: int = 512) -> str:
    """Of all pixels in order; of streamed images, of their files."""
    rows = range(0, len(images), chunk)

    def pixels(start: int) -> bytes:
        stop = min(start + chunk, len(images))
        found = hashlib.blake2b(digest_size=16)
        if isinstance(images, StreamedImages):
            for name in images.names[start:stop]:
                found.update(hashlib.blake2b(images.files.read(name), digest_size=16).digest())
        elif isinstance(images, ArrayImages):
            found.update(np.ascontiguousarray(images.array[start:stop]).data)
        else:
            found.update(images.take(torch.arange(start, stop)).contiguous().numpy().data)
        return found.digest()

    whole = hashlib.blake2b(f"{len(images)} {images.shape}".encode(), digest_size=16)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for part in pool.map(pixels, rows):
            whole.update(part)
    return whole.hexdigest()


def _digest(encoder: Encoder, images: str, views: int, bf16: bool) -> str:
    """Of everything that the embeddings depend on."""
    found = hashlib.blake2b(digest_size=16)
    kind = (FORMAT, str(encoder), encoder.name, encoder.options(), views, bf16, images, torch.__version__)
    found.update(repr(kind).encode())
    if not encoder.name:  # A network of the user's own: its code is not known, so what it answers stands for it.
        probe = torch.randint(0, 256, (2, *encoder.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(), evaluating(encoder):
            found.update(encoder(probe.to(device_of(encoder))).half().cpu().numpy().data)
    for name, value in encoder.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _bytes_of(values: Tensor, half: bool) -> memoryview:
    """A .npy file: float16 where bf16 computed them and none overflows, else float32."""
    kept = values.cpu()
    if half and float(kept.abs().max()) < torch.finfo(torch.float16).max:
        kept = kept.half()
    file = io.BytesIO()
    np.lib.format.write_array(file, kept.contiguous().numpy(), allow_pickle=False)
    return file.getbuffer()


def open_values(storage: Storage, key: str) -> Tensor:
    """float16 or float32 [N, V, D], memory-mapped where the storage is a folder. Raises MissingKey."""
    if isinstance(storage, LocalStorage):
        path = storage.path_of(key)
        if not path.exists():
            raise MissingKey(f"{storage.address} has no {key}")
        # Copy on write, which torch wants, though nothing writes.
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    return torch.from_numpy(np.load(io.BytesIO(storage.get(key)), allow_pickle=False))


def remember_features(setup: SlotSetup, spec: TrialSpec, device: torch.device, test: LabelledSubset | None = None) -> None:
    """Lets this process look up a trial's embeddings of the pool, or of the test images that are given.

    Where they are not in the storage (any more), the pool is embedded by whoever needs it.
    """
    table = setup.table_for(spec)
    images, key = (setup.split.train.images, "pool") if test is None else (test.data.images, "test")
    if table is None or not (place := getattr(table, key)):
        return
    encoder = frozen_encoder(table.spec, setup.split.train, device)
    if recall(encoder, images) is None:
        try:
            remember(encoder, Embedded(images, open_values(setup.storage, place)))
        except MissingKey:
            return
