"""Embeddings of a study: made once, found again, and never more than the time allows."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import orchestrator.features as features_module
from cluster.storage import LocalStorage
from methods.catalogue import CATALOGUE
from methods.data.records import ArrayImages, LabelledSubset, Split
from methods.parts.encoders import EncoderSpec
from methods.protocols import protocol
from methods.protocols.contract import embed, logits_of
from methods.tasks.classification import Classification
from methods.training.clock import Fidelity
from methods.training.on_features import frozen_encoder
from methods.world import World
from orchestrator.engine.examination import examine
from orchestrator.engine.records import Assignment, Segment, SlotSetup, TrialSpec
from orchestrator.engine.trial import SegmentRun
from orchestrator.feature_cache import FeatureCache
from orchestrator.features import INDEX, digest_of, embedded, open_values, remember_features, share_of_clock, showing_within

METHODS = ("linear_probe", "knn_classifier", "supervised")
CPU = torch.device("cpu")
PROBE = TrialSpec("0", 0, "linear_probe", {}, 5)


@pytest.fixture
def made(make_split: Callable[..., Split], tmp_path: Path) -> tuple[SlotSetup, LabelledSubset]:
    split = make_split(4, 10, 5, 16)
    assert split.test is not None
    setup = SlotSetup(
        split=dataclasses.replace(split, test=None),
        methods={name: CATALOGUE[name] for name in METHODS},
        encoder=EncoderSpec("resnet_small"),
        vit_encoder=EncoderSpec("vit_tiny"),
        protocol=protocol("predict"),
        objective=None,
        top=Fidelity("epochs", 3),
        epoch_images=32,
        precision="fp32",
        seed=0,
        task=Classification(),
        storage=LocalStorage(tmp_path / "run"),
        threads=1,
    )
    return setup, split.test


def never(*args: object, **kwargs: object) -> Any:
    raise AssertionError("nothing may be embedded")


def begin(run: SegmentRun, method: str, key: str, top: int = 3) -> Any:
    work = TrialSpec(key, int(key), method, {}, 5)
    run.begin(Assignment(work, Segment(key, Fidelity("epochs", top)), illustrate=True))
    return run.advance()


def test_pool_and_test_lie_in_the_run_folder_apart(made: tuple[SlotSetup, LabelledSubset]) -> None:
    setup, test = made
    (table,) = embedded(setup, test, 1, say=print).features
    assert table.pool.startswith("features/pool/")
    assert table.test.startswith("features/test/")
    assert set(setup.storage.list("features/")) == {INDEX, table.pool, table.test}
    encoder, images = frozen_encoder(table.spec, setup.split.train, CPU), setup.split.train.images
    values = open_values(setup.storage, table.pool)
    assert values.shape == (40, 2, encoder.dim)
    with torch.no_grad():
        shown = images.take(torch.arange(40))
        torch.testing.assert_close(values[:, 0], encoder(shown), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[:, 1], encoder(shown.flip(3)), rtol=1e-4, atol=1e-5)


def test_a_slot_trains_scores_and_tests_without_a_forward_pass(
    made: tuple[SlotSetup, LabelledSubset], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, test = made
    setup = embedded(setup, test, 1)
    encoder = frozen_encoder(setup.features[0].spec, setup.split.train, CPU)
    run = SegmentRun(setup, World())
    monkeypatch.setattr(type(encoder), "forward", never)
    # What a model costs is measured on pixels.
    monkeypatch.setattr("orchestrator.engine.examination.cost_of", lambda model, split: (1, 1.0))
    for key, method in enumerate(METHODS[:2]):
        report = begin(run, method, str(key))
        assert (report.status, report.reason) == ("reached", "")
        assert (report.epoch, report.images, report.done) == (0, 0, setup.top)
        assert report.rung.n == 16
        assert report.checkpoint is not None
        spec = TrialSpec(str(key), key, method, {}, 5)
        remember_features(setup, spec, CPU, test)
        score = examine(setup, spec, report.checkpoint, test, CPU)
        assert score.n == 40
        assert score.value > 0.5


def test_what_is_looked_up_is_what_would_be_computed(made: tuple[SlotSetup, LabelledSubset]) -> None:
    setup, test = made
    run = SegmentRun(embedded(setup, test, 1), World())
    assert begin(run, "linear_probe", "0").status == "reached"
    model = run.given.spec
    assert model.method == "linear_probe"
    training = run._trainings.first  # type: ignore[union-attr]
    predictor, asked = training.learner.predictor(), setup.split.validation
    assert predictor is not None
    found = logits_of(predictor, asked.data.images, asked.index)
    with torch.no_grad():
        expected = predictor.eval()(asked.data.images.take(torch.from_numpy(asked.index)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Other images with other content are never mistaken for known ones.
    assert isinstance(asked.data.images, ArrayImages)
    other = ArrayImages(255 - asked.data.images.array)
    known, new = (embed(training.encoder, images, asked.index) for images in (asked.data.images, other))
    assert not torch.allclose(known, new)


def test_a_second_study_embeds_nothing(
    made: tuple[SlotSetup, LabelledSubset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, test = made
    monkeypatch.setenv("LABELWISE_CACHE", str(tmp_path / "cache"))
    first = embedded(setup, test, 1)
    monkeypatch.setattr(features_module, "embed_views", never)
    again = dataclasses.replace(setup, storage=LocalStorage(tmp_path / "again"))
    # Known embeddings cost nothing, so that no time is too short for them.
    second = embedded(again, test, 1, limit=0.0)
    assert second.features == first.features
    assert again.storage.get(second.features[0].pool) == setup.storage.get(first.features[0].pool)
    # And a study that goes on reads its own index.
    monkeypatch.setenv("LABELWISE_CACHE", "")
    assert embedded(setup, test, 1).features == first.features


def test_each_of_several_encoders_is_embedded_and_shares_the_time(
    made: tuple[SlotSetup, LabelledSubset], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, test = made
    specs = {"a": EncoderSpec("conv4"), "b": EncoderSpec("resnet_small"), "c": EncoderSpec("conv4_pyramid")}
    offered = {"linear_probe": ("a", "b"), "knn_classifier": ("b",), "supervised": ("c",)}
    setup = dataclasses.replace(setup, encoders=specs, offered=offered)
    limits = []

    def within(images: int, views: int, sizes: object, seconds_of: object, limit: float) -> tuple[int, int]:
        limits.append(limit)
        return views, 0

    monkeypatch.setattr(features_module, "showing_within", within)
    found = embedded(setup, test, 1, limit=10.0)
    assert limits[0] == 5.0
    assert 5.0 < limits[1] < 10.0, "what the first has not used"
    tables = {label: found.table_for(TrialSpec("0", 0, "linear_probe", {}, 5, encoder=label)) for label in "ab"}
    assert [table.asked for table in found.features] == [specs["a"], specs["b"]], "nobody asks for the features of c"
    assert tables["a"] != tables["b"]
    assert found.table_for(TrialSpec("0", 0, "supervised", {}, 5, encoder="c")) is None
    assert found.encoder_for(TrialSpec("0", 0, "supervised", {}, 5, encoder="c")) == specs["c"]
    # A slot looks each trial's features up in its own encoder's table.
    run = SegmentRun(found, World())
    monkeypatch.setattr(features_module, "embed_views", never)
    monkeypatch.setattr("methods.training.on_features.embed_views", never)
    for key, label in enumerate("abab"):
        work = TrialSpec(str(key), key, "linear_probe", {}, 5, encoder=label)
        run.begin(Assignment(work, Segment(str(key), Fidelity("epochs", 3))))
        assert run.advance().status == "reached"
        assert run._trainings.first.encoder.name == specs[label].name  # type: ignore[union-attr]


def test_other_pixels_or_weights_are_other_embeddings(made: tuple[SlotSetup, LabelledSubset], tmp_path: Path) -> None:
    setup, _ = made
    images = setup.split.train.images
    assert isinstance(images, ArrayImages)
    one_off = images.array.copy()
    one_off[3, 2, 1, 0] ^= 1
    assert digest_of(images) == digest_of(ArrayImages(images.array.copy())) != digest_of(ArrayImages(one_off))
    keys = set()
    for number, (encoder, train) in enumerate(
        [
            (setup.encoder, setup.split.train),
            (EncoderSpec("conv4"), setup.split.train),
            (setup.encoder, dataclasses.replace(setup.split.train, mean=(0.4,) * 3)),
            (setup.encoder, dataclasses.replace(setup.split.train, flip=False)),
        ]
    ):
        other = dataclasses.replace(
            setup,
            encoder=encoder,
            split=dataclasses.replace(setup.split, train=train),
            storage=LocalStorage(tmp_path / str(number)),
        )
        keys.add(embedded(other, None, 1).features[0].pool)
    assert len(keys) == 4


def test_a_study_without_feature_methods_embeds_nothing(
    made: tuple[SlotSetup, LabelledSubset], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, test = made
    monkeypatch.setattr(features_module, "embed_views", never)
    plain = dataclasses.replace(setup, methods={"supervised": CATALOGUE["supervised"]})
    assert embedded(plain, test, 1) is plain
    assert not setup.storage.list("features/")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (float("inf"), (2, 160)),
        (520.0, (2, 160)),
        (500.0, (1, 160)),
        (200.0, (1, 128)),
        (100.0, (1, 96)),
        (1.0, (1, 96)),
    ],
)
def test_views_go_before_size(limit: float, expected: tuple[int, int]) -> None:
    """1,000 images that take a second for each 100 x 100 pixels."""
    assert showing_within(1000, 2, (160, 128, 96), lambda size: size**2 / 1e5, limit) == expected


def test_nothing_is_measured_without_a_limit() -> None:
    assert showing_within(1000, 1, (0,), never, float("inf")) == (1, 0)


def test_where_nothing_else_trains_embedding_may_take_longer() -> None:
    alone, beside = (
        share_of_clock([CATALOGUE[name] for name in names])
        for names in (["linear_probe", "label_propagation"], ["linear_probe", "supervised"])
    )
    assert beside < alone < 0.5


def test_a_tight_limit_drops_the_mirrored_view_and_says_so(made: tuple[SlotSetup, LabelledSubset]) -> None:
    setup, test = made
    said: list[str] = []
    found = embedded(setup, test, 1, limit=1e-9, say=said.append)
    assert found.features[0].views == 1
    assert open_values(setup.storage, found.features[0].pool).shape[1] == 1
    assert any("both views or larger images would take more than" in line for line in said)
    assert begin(SegmentRun(found, World()), "linear_probe", "0").status == "reached"


def test_the_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, limit=250)
    for number, key in enumerate("abc"):
        cache.put(key, bytes(100))
        path = tmp_path / "features" / f"{key}.npy"
        if path.exists():
            os.utime(path, (number, number))
        if key == "b":
            assert cache.get("a") == bytes(100)  # now the newest
    assert [cache.holds(key) for key in "abc"] == [True, False, True]
    cache.put("large", bytes(300))
    assert not cache.holds("large")


def test_no_cache_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (FeatureCache(None), FeatureCache(tmp_path / "file")):
        cache.put("a", b"x")
        assert cache.get("a") is None
        assert not cache.holds("a")


def test_float32_where_half_would_overflow() -> None:
    values = torch.tensor([[[1e5, 1.0]]])
    kept = np.load(io.BytesIO(features_module._bytes_of(values, half=True)))
    assert kept.dtype == np.float32


class Slow(nn.Module):
    """A network of a user's own, of which two with the same (no) weights answer differently."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x[:, :, :4, :4].flatten(1)


def test_a_network_of_ones_own_is_told_apart_by_what_it_answers(made: tuple[SlotSetup, LabelledSubset]) -> None:
    setup, test = made
    setups = [dataclasses.replace(setup, encoder=EncoderSpec("", module=Slow(scale))) for scale in (1.0, 1.0, 2.0)]
    done = [embedded(each, test, 1, limit=0.0, say=lambda line: None) for each in setups]
    keys = [each.table_for(PROBE).pool for each in done]  # type: ignore[union-attr]
    assert keys[0] == keys[1] != keys[2]
    assert open_values(setup.storage, keys[0]).shape == (len(setup.split.train), 1, 48)
    again = embedded(setups[0], test, 1, limit=0.0, say=lambda line: None)
    assert again.table_for(PROBE) == done[0].table_for(PROBE)


@pytest.mark.long
def test_what_takes_one_size_is_embedded_at_it_however_long_it_takes(made: tuple[SlotSetup, LabelledSubset]) -> None:
    setup, test = made
    setup = dataclasses.replace(setup, encoder=EncoderSpec("torchvision/vit_b_32", "none"))
    done = embedded(setup, test, 1, limit=0.0, say=lambda line: None)
    table = done.table_for(PROBE)
    assert table is not None
    assert table.spec == setup.encoder
    assert open_values(setup.storage, table.test).shape == (len(test.data), 1, 768)
