"""What is found in data: copies, leaks, odd images, label errors, and parts that are not alike; and how it is told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cluster.storage import LocalStorage
from methods.data.budget import train_data
from methods.data.records import ArrayImages, ImageSet, LabelledSubset, Split
from methods.parts.encoders import EncoderSpec
from orchestrator.care.check import check
from orchestrator.care.copies import copies, leaks, near_duplicates
from orchestrator.care.files import read_care, write_care
from orchestrator.care.find import find
from orchestrator.care.label_errors import Judged, judged, label_errors, quality, wrong
from orchestrator.care.likeness import aucs, likeness
from orchestrator.care.looks import Looks, Part, look
from orchestrator.care.odd import odd_images
from orchestrator.care.past import past_of
from orchestrator.care.records import Care, Finding, Likeness, Place
from orchestrator.care.sentences import leaked, sentences, summary
from orchestrator.care.sheets import pixels_of
from orchestrator.care.study import parts_of
from search_spaces.domains import UserError

SIZE = 24


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members that are fitted in milliseconds: what an ensemble of all four finds is in ``tests/results``."""
    monkeypatch.setattr("orchestrator.care.label_errors.MEMBERS", ("linear_probe", "prototype_classifier"))


def scenes(n: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, 24, 24, 3]: smooth pictures, each another."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).numpy()


def again(image: np.ndarray, quality: int = 60) -> np.ndarray:
    """The image as JPEG, a little darker."""
    out = io.BytesIO()
    Image.fromarray((image * 0.9).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(out.getvalue())))


def part(name: str, pixels: np.ndarray, embedding: Tensor | None = None, label: np.ndarray | None = None) -> Part:
    label = np.arange(len(pixels)) % 2 if label is None else label
    names = tuple(f"{name}/{i}.png" for i in range(len(pixels)))
    return Part(name, ArrayImages(pixels), np.arange(len(pixels)), label, ("a", "<b>"), names, embedding)


def content(pixels: np.ndarray) -> Tensor:
    """float32 [n, 1, 48]: an embedding that copies share nearly."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d((x + x.flip(3)) / 2, 4).flatten(1)[:, None]


def copied(embedded: bool) -> Looks:
    """Training images 50 and 51 are copies of 3 and 7, test images 0, 1 and 2 of training images 3, 9 and 11."""
    base = scenes(50)
    train = np.concatenate([base, base[3:4], again(base[7])[None]])
    test = np.concatenate([base[3:4], again(base[9])[None], np.ascontiguousarray(base[11:12, :, ::-1]), scenes(20, seed=1)])
    return look(part(name, x, content(x) if embedded else None) for name, x in (("train", train), ("test", test)))


@pytest.mark.parametrize("embedded", [True, False])
def test_copies_are_found_within_the_training_images_and_between_test_and_training(embedded: bool) -> None:
    looks = copied(embedded)
    near = copies(looks)
    groups = {tuple(place.position for place in found.images): found.said for found in near_duplicates(looks, near)}
    assert groups == {(3, 50): "exact", (7, 51): "near"}
    found = {(test.position, train.position): each.said for each in leaks(looks, near) for test, train in [each.images]}
    assert found == {(0, 3): "exact", (1, 9): "near", (2, 11): "near"}
    assert next(each.said for each in leaks(looks, near)) == "exact"


def test_images_that_are_all_much_alike_are_no_copies() -> None:
    """As handwritten digits are: near in both ways, but no nearer than any other."""
    random = np.random.default_rng(0)
    base = scenes(1)[0].astype(float)
    pixels = np.stack([base + random.normal(0, 12, base.shape) for _ in range(60)]).clip(0, 255).astype(np.uint8)
    looks = look([part("train", pixels, torch.ones(60, 1, 8) + 0.1 * torch.randn(60, 1, 8))])
    assert near_duplicates(looks, copies(looks)) == ()


def test_more_copies_than_neighbours_are_one_group() -> None:
    base = scenes(30)
    looks = look([part("train", np.concatenate([base, np.repeat(base[:1], 25, axis=0)]))])
    (found,) = near_duplicates(looks, copies(looks))
    assert len(found.images) == 26
    assert found.said == "exact"


def test_one_image_or_copies_of_one_are_no_trouble() -> None:
    looks = look([part("train", np.repeat(scenes(1), 3, axis=0))])
    near = copies(looks)
    assert len(near_duplicates(looks, near)) == 1
    assert odd_images(looks, near) == ()


def test_an_image_far_from_all_others_and_a_blank_one_are_odd() -> None:
    pixels = scenes(80)
    pixels[5] = (200, 10, 10)  # One colour, though its channels differ.
    embedding, _ = blobs(80, 4, seed=0, distance=20.0)
    embedding[9] = 20 * F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    looks = look([part("train", pixels, embedding)])
    found = {each.images[0].position: each.said for each in odd_images(looks, copies(looks))}
    assert found[5] == "one colour"
    assert found[9] == "far from all other images"
    assert len(found) <= 4


def blobs(n: int, classes: int, seed: int, distance: float = 3.0) -> tuple[Tensor, np.ndarray]:
    """float32 [n, 1, 16] around a centre for each class, and int64 [n]."""
    stream = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    centre = F.normalize(torch.randn(classes, 16, generator=stream), dim=1) * distance
    return (centre[label] + torch.randn(n, 16, generator=stream))[:, None], label.numpy()


def test_flipped_labels_are_the_most_suspect() -> None:
    pytest.importorskip("cleanlab", reason="label errors need the extra check")
    values, label = blobs(240, 4, seed=0, distance=5.0)
    given = label.copy()
    flipped = np.array([3, 50, 101, 170, 200])
    given[flipped] = (given[flipped] + 1) % 4
    given[[7, 8, 9]] = -1
    found = judged(values, given, 4, seed=0)
    assert found is not None
    assert set(found.index) == set(range(240)) - {7, 8, 9}
    assert set(found.index[np.argsort(quality(found))[:5]]) == set(flipped)
    listed = label_errors(found, tuple("abcd"), lambda i: Place("train", i, str(i), "abcd"[given[i]]))
    # Confident learning is careful: it lists no more than it can count.
    suspected = {each.images[0].position: each.said for each in listed}
    assert 0 < len(suspected) <= 6
    assert all(suspected[i] == "abcd"[label[i]] for i in flipped if i in suspected)
    assert [each.score for each in listed] == sorted(each.score for each in listed)


def test_nothing_judges_its_own_label() -> None:
    """An image alone of its kind, whatever its label: whoever had learnt from it would know."""
    values, label = blobs(60, 2, seed=1, distance=6.0)
    values = torch.cat([values, values[:1] + 0.01])
    found = judged(values, np.append(label, 1 - label[0]), 2, seed=0)
    assert found is not None
    assert found.mean[60].argmax() == label[0]


def test_classes_with_one_label_are_left_out_and_one_class_alone_says_nothing() -> None:
    values, label = blobs(40, 2, seed=0)
    found = judged(values, np.where(np.arange(40) == 5, 2, label), 3, seed=0)
    assert found is not None
    assert 5 not in found.index
    assert judged(values, np.zeros(40, dtype=np.int64), 2, seed=0) is None
    assert judged(values, np.full(40, -1), 2, seed=0) is None
    assert judged(values, np.full(40, -1), 0, seed=0) is None


def test_a_model_that_agrees_with_few_labels_lists_none() -> None:
    pytest.importorskip("cleanlab", reason="label errors need the extra check")
    looks = copied(embedded=True)
    train = looks.parts[0]
    p = np.tile([0.1, 0.9], (len(train), 1))
    poor = Judged(np.arange(len(train)), np.where(np.arange(len(train)) < 40, 0, 1), (p,))
    care = find(looks.parts, "x", lambda seen: poor, "", 0)
    assert "label_errors" not in care.found
    assert "agree with 23.1%" in care.left_out["label_errors"]


def test_alike_sets_are_called_alike_and_others_not() -> None:
    draw = torch.Generator().manual_seed(0)
    p = []
    for seed in range(20):
        found = likeness("a", torch.randn(80, 10, generator=draw), "b", torch.randn(120, 10, generator=draw), seed)
        assert found is not None
        p.append(found.p)
    # Uniform on 0..1 where they are alike: of 20 the mean has a standard deviation of .065.
    assert 0.3 < np.mean(p) < 0.7
    other = likeness("a", torch.randn(80, 10, generator=draw), "b", torch.randn(120, 10, generator=draw) + 0.5, 0)
    assert other is not None
    assert not other.alike
    assert other.p < 0.01
    assert likeness("a", torch.randn(5, 10), "b", torch.randn(120, 10), 0) is None
    assert likeness("a", torch.zeros(30, 10), "b", torch.zeros(40, 10), 0) is None, "an encoder that sees nothing"


def test_the_area_under_the_curve_counts_pairs() -> None:
    random = np.random.default_rng(0)
    score, positive = random.integers(0, 6, (40, 3)).astype(float), random.random((40, 3)) < 0.4
    for column in range(3):
        own, other = score[positive[:, column], column], score[~positive[:, column], column]
        pairs = (own[:, None] > other).mean() + 0.5 * (own[:, None] == other).mean()
        assert aucs(score, positive)[column] == pytest.approx(pairs)


@pytest.mark.parametrize(
    ("spec", "data", "said"),
    [
        (EncoderSpec("resnet_small"), "photos", ""),
        (EncoderSpec("lite0", "none"), "photos", ""),
        (EncoderSpec("lite0"), "photos", "which cannot be known here"),
        (EncoderSpec("lite0"), "stl10", "may have seen the test images: those of stl10 are taken from ImageNet."),
        (EncoderSpec("lite0"), ["photos", Path("sets/tiny-imagenet-200.zip")], "taken from ImageNet"),
    ],
)
def test_what_an_encoder_may_have_seen_is_told_by_its_record(spec: EncoderSpec, data: Any, said: str) -> None:
    found = past_of(spec, [data, 0.2])
    assert (said in found) if said else found == ""


def test_weights_of_a_study_of_the_same_data_may_have_seen_its_test(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("data: digits\nmethods: [one_of_my_own]\ntrials: 1\n")
    spec = EncoderSpec("resnet_small", str(tmp_path))
    assert "an earlier study of the same data" in past_of(spec, ["digits", None])
    assert "cannot be known" in past_of(spec, ["glyphs", None])


def some_care(**changes: Any) -> Care:
    found = {
        "leaks": (Finding((Place("test", 0, "t.png", "a"), Place("train", 4, "x.png", "<b>")), 1.0, "exact"),),
        "near_duplicates": (Finding((Place("train", 1, "1.png"), Place("train", 2, "2.png")), 0.98, "near"),),
        "odd_images": (Finding((Place("train", 1, "1.png"),), 4.2, "far from all other images"),),
        "label_errors": (Finding((Place("train", 1, "1.png", "a"),), 0.01, "<b>"),),
    }
    return Care(**{"by": "x", "trained": 30, "tested": 20, "found": found, "labels": 30, "accuracy": 0.9, **changes})


def test_leaks_are_said_in_any_case() -> None:
    assert "1 of 20 test images (5.0%) are copies of training images, 1 of them exact" in leaked(some_care())
    assert leaked(some_care(found={"leaks": ()})) == "No test image is a copy of a training image, exactly or nearly."
    few = leaked(some_care(found={"leaks": ()}, drawn_from=(500, 20)))
    assert few.endswith("exactly or nearly. Compared were 30 and 20 images (drawn from 500 and 20).")
    assert leaked(some_care(tested=0)) == ""


def test_a_verdict_hears_of_leaks_of_unlike_parts_and_of_what_was_seen() -> None:
    unlike = Likeness("labelled images", "test images", 60, 200, 0.83, 0.002)
    alike = Likeness("labelled images", "unlabelled images", 60, 200, 0.83, 0.2)
    said = sentences(some_care(likeness=(unlike, alike), past="It may have seen them."))
    assert len(said) == 3
    assert said[0] == leaked(some_care())
    assert said[1].startswith("The labelled images are not like the test images: a classifier tells them apart (AUC 0.83")
    assert said[2] == "It may have seen them."


def test_lists_and_sheets_are_written_and_read_again(tmp_path: Path) -> None:
    storage, care = LocalStorage(tmp_path), some_care()
    parts = [part("train", scenes(30)), part("test", scenes(20))]
    write_care(storage, "care/", care, pixels_of(parts))
    assert read_care(storage, "care/") == care
    leak = pd.read_csv(tmp_path / "care" / "leaks.csv")
    assert leak.to_dict("records") == [
        {
            "test_file": "t.png",
            "test_label": "a",
            "train_file": "x.png",
            "train_label": "<b>",
            "copy": "exact",
            "similarity": 1.0,
        }
    ]
    assert list(pd.read_csv(tmp_path / "care" / "near_duplicates.csv")["group"]) == [1, 1]
    for kind in care.found:
        with Image.open(tmp_path / "care" / f"{kind}.png") as sheet:
            assert sheet.width > 100
    write_care(storage, "care/", some_care(found={}), pixels_of(parts))
    assert not (tmp_path / "care" / "leaks.png").exists()
    assert len(pd.read_csv(tmp_path / "care" / "leaks.csv")) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders and a test: 20 images of each of two classes and 5 without a label, of which some are copies."""
    base = scenes(50)
    for i in range(45):
        place = ("unlabelled", "") if i >= 40 else ("train", ("cat", "dog")[i % 2])
        (tmp_path / "data" / Path(*place)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(base[i]).save(tmp_path / "data" / Path(*place) / f"{i}.png")
    for i, image in enumerate([base[0], again(base[1]), *base[45:]]):
        (tmp_path / "data" / "test" / ("cat", "dog")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "data" / "test" / ("cat", "dog")[i % 2] / f"t{i}.png")
    return tmp_path / "data"


def test_a_folder_is_checked_and_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    care = check(folder, tmp_path / "out", encoder="none")
    assert (care.trained, care.tested) == (45, 7)
    assert {(a.file, b.file): each.said for each in care.found["leaks"] for a, b in [each.images]} == {
        ("test/cat/t0.png", "train/cat/0.png"): "exact",
        ("test/dog/t1.png", "train/dog/1.png"): "near",
    }
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {"care.json", "label_errors.csv", "leaks.csv", "leaks.png", "near_duplicates.csv", "odd_images.csv"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "since no pretrained encoder has seen the images" in summary(care)[0]


def test_without_cleanlab_the_other_lists_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.care.find.can_be_found", lambda: False)
    care = check(folder, encoder="none")
    assert "pip install 'labelwise[check]'" in care.left_out["label_errors"]
    assert len(care.found["leaks"]) == 2


def test_mistakes_are_told_in_a_line(folder: Path) -> None:
    with pytest.raises(UserError, match="must be new or empty"):
        check(folder, folder, encoder="none")
    with pytest.raises(UserError, match="weights of its own, got resnet_small; give lite0"):
        check(folder, encoder="resnet_small")
    with pytest.raises(UserError, match="lite1 is not an encoder"):
        check(folder, encoder="lite1")


def test_confident_learning_counts_as_many_as_were_flipped() -> None:
    pytest.importorskip("cleanlab", reason="label errors need the extra check")
    label = np.arange(200) % 2
    p = np.where(np.eye(2)[label] == 1, 0.95, 0.05)
    given = label.copy()
    given[:10] = 1 - given[:10]
    assert set(np.flatnonzero(wrong(Judged(np.arange(200), given, (p,))))) == set(range(10))


def test_of_a_large_set_images_are_drawn_from_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files lie class by class, so that the first ones would be of few classes."""
    monkeypatch.setattr("orchestrator.care.study.MOST", 50)
    label = np.repeat(np.arange(10), 40)
    data = ImageSet(ArrayImages(np.zeros((400, 8, 8, 1), np.uint8)), label, tuple("abcdefghij"))
    whole = LabelledSubset(data, np.arange(400), label)
    split = Split(train_data(data, label), whole, whole, whole, holdout=False)
    for part in parts_of(split, None, None):
        assert len(part) == 50
        assert np.array_equal(part.label, label[part.index])
        assert len(np.unique(part.label)) >= 8
