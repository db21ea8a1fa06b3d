"""Loading: every kind of data, the rules for size and channels, and one clear line for everything that can be wrong."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from methods.data import decode
from methods.data.decode import StreamedImages
from methods.data.episodic import split_few_shot
from methods.data.folders import load_pictures
from methods.data.records import ArrayImages, Source
from methods.data.sources import load
from search_spaces.domains import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real zips are not in {SHARED}")


def picture(value: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    """A flat image: 16 x 16 (width, height) unless stated."""
    return Image.new(mode, size, value if mode in ("L", "1", "I;16") else (value, 0, 0, 255)[: len(mode)])


def png(path: Path, value: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value, size, mode).save(path)
    return path


def encoded(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture(value).save(stream, kind)
    return stream.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def fails(spec: object, *words: str, **options: object) -> str:
    """The error's line, after checking that it is one line and holds all the words."""
    with pytest.raises(UserError) as caught:
        load(spec, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


def array(source: Source) -> np.ndarray:
    assert isinstance(source.train.images, ArrayImages)
    return source.train.images.array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("cat", "dog")):
        for i in range(3):
            png(tmp_path / "data" / name / f"{i}.png", 100 * k + i)
    return tmp_path / "data"


def test_class_folders_give_labels_names_and_pixels(folder: Path) -> None:
    data = load(folder).train
    assert data.classes == ("cat", "dog")
    assert data.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.names == ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png")
    assert data.images.shape == (3, 16, 16)
    taken = data.images.take(torch.tensor([4, 0]))
    assert taken.is_contiguous(memory_format=torch.channels_last)
    assert taken[:, 0, 0, 0].tolist() == [101, 0]
    assert data.flip


def test_a_zip_reads_as_its_folder_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    files = {f"wrap/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    litter = {"__MACOSX/wrap/cat/._0.png": b"x", "wrap/.DS_Store": b"x", "wrap/cat/Thumbs.db": b"x", "wrap/readme.txt": b"x"}
    path = zipped(tmp_path / "data.zip", {**files, **litter})
    before = sorted(tmp_path.rglob("*"))
    source = load(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (array(source) == array(load(folder))).all()
    assert source.train.classes == ("cat", "dog")
    assert source.notes == (f"1 files in {path} that are not images were ignored",)


def test_train_test_validation_and_unlabelled_parts(tmp_path: Path) -> None:
    names = "train/a/1 train/b/2 val/a/3 test/a/4 test/b/5 unlabelled/deep/6 train/unlabelled/7"
    for name in (f"{name}.png" for name in names.split()):
        png(tmp_path / "wrap" / name, int(name[-5]))
    source = load(tmp_path)
    assert source.train.classes == ("a", "b")
    assert dict(zip(source.train.names, source.train.label.tolist(), strict=True)) == {
        "wrap/train/a/1.png": 0,
        "wrap/train/b/2.png": 1,
        "wrap/val/a/3.png": 0,
        "wrap/unlabelled/deep/6.png": -1,
        "wrap/train/unlabelled/7.png": -1,
    }
    assert source.test is not None
    assert source.test.label.tolist() == [0, 1]
    assert source.test.images.take(torch.tensor([0, 1]))[:, 0, 0, 0].tolist() == [4, 5]
    assert source.notes == ("a validation part of 1 images counts as training images: the label budget draws its own",)
    assert source.validation == ()


@pytest.mark.parametrize("tables", [False, True])
def test_a_division_by_class_is_kept(tmp_path: Path, tables: bool) -> None:
    """CIFAR-FS and miniImageNet: train, val and test of other classes, as class folders or as csv files beside images/."""
    members = {"train": "abcd", "val": "ef", "test": "gh"}
    for part, classes in members.items():
        lines = ["filename,label"]
        for label, n in ((label, n) for label in classes for n in range(4)):
            file = f"{label}{n}.png"
            png(tmp_path / ("images" if tables else f"{part}/{label}") / file, 20 * ord(label) % 256)
            lines.append(f"{file},{label}")
        if tables:
            (tmp_path / f"{part}.csv").write_text("\n".join(lines))
    source = load(tmp_path)
    assert source.train.classes == tuple("abcdef")
    assert source.validation == ("e", "f")
    assert source.test is not None
    assert source.test.classes == ("g", "h")
    assert "few-shot studies validate on its 2 classes" in source.notes[0]
    part = split_few_shot(source, seed=5)
    assert part.labelled.data.classes == tuple("abcd")
    assert part.validation.data.classes == ("e", "f")
    assert part.test is not None
    assert part.test.data.classes == ("g", "h")


def test_classes_set_apart_are_not_drawn_for_the_test(tmp_path: Path) -> None:
    """Without a test part; and beside tables there may be images without labels."""
    for label in "abcdef":
        png(tmp_path / "images" / f"{label}.png", ord(label))
    png(tmp_path / "unlabelled" / "u.png", 7)
    (tmp_path / "train.csv").write_text("file,label\n" + "\n".join(f"{k}.png,{k}" for k in "abcde"))
    (tmp_path / "val.csv").write_text("file,label\nf.png,f")
    source = load(tmp_path)
    assert source.validation == ("f",)
    assert (source.train.label < 0).sum() == 1
    for seed in range(8):
        part = split_few_shot(source, test_share=0.4, seed=seed)
        assert part.validation.data.classes == ("f",)
        assert part.test is not None
        assert "f" not in part.test.data.classes
        assert len(part.test.data.classes) == 2
    both = load([tmp_path, load(tmp_path).train])
    assert both.validation == (), "another source trains on it"


def test_tables_beside_class_folders_are_only_files(tmp_path: Path) -> None:
    for label in "ab":
        png(tmp_path / label / "1.png")
    (tmp_path / "train.csv").write_text("this,is,something,else")
    source = load(tmp_path)
    assert source.train.classes == ("a", "b")
    assert "1 files" in source.notes[0]


def test_a_folder_of_test_images_alone_counts_as_data(tmp_path: Path) -> None:
    png(tmp_path / "test/a/1.png")
    png(tmp_path / "test/b/2.png")
    source = load(tmp_path)
    assert source.test is None
    assert source.train.classes == ("a", "b")


def test_two_levels_are_groups_and_classes(tmp_path: Path) -> None:
    for name in ("Greek/c1", "Greek/c2", "Latin/c1"):
        png(tmp_path / "images" / name / "1.png", 1, mode="1")
    data = load(tmp_path).train
    assert data.classes == ("Greek/c1", "Greek/c2", "Latin/c1")
    assert data.groups == ("Greek", "Latin")
    assert data.group is not None
    assert data.group.tolist() == [0, 0, 1]
    assert not data.flip


def test_numbered_classes_are_in_order_of_value(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        png(tmp_path / name / "1.png")
    assert load(tmp_path).train.classes == ("1", "9", "10")


def test_labels_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png", "unlabelled/d.png"):
        png(tmp_path / name)
    (tmp_path / "labels.csv").write_bytes(
        '\ufefffile,label,group,caption\na.png,cat,x,a grey cat\r\nb.png,,y,\nsub\\c.png,dog,x,"a dog, running"\n'.encode()
    )
    data = load(tmp_path).train
    assert data.names == ("a.png", "b.png", "sub/c.png", "unlabelled/d.png")
    assert data.classes == ("cat", "dog")
    assert data.label.tolist() == [0, -1, 1, -1]
    assert data.group is not None
    assert data.group.tolist() == [0, 1, 0, -1]
    assert data.captions == ("a grey cat", "", "a dog, running", "")
    assert data.caption_labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.png,x\nnone.png,y\n", ("none.png in line 3", "1 do not")),
        ("file,label\na.png,x\n", ("1 have none", "b.png")),
        ("file,label\na.png,x\na.png,y\nb.png,y\n", ("once", "a.png", "line 3")),
        ("name,class\na.png,x\n", ("file,label", "name,class")),
        ("", ("file,label", "nothing")),
        ("file,label\na.png,x,y\nb.png,z\n", ("line 2", "2 cells, got 3")),
        ('file,label\n"a.png,x\n', ("comma-separated",)),
        (b"file,label\na.png,\xff\n", ("UTF-8",)),
    ],
)
def test_labels_csv_that_does_not_fit(tmp_path: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    png(tmp_path / "a.png")
    png(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    fails(tmp_path, "labels.csv", *words)


def test_sizes(tmp_path: Path) -> None:
    png(tmp_path / "a/1.png", 9, (100, 40))
    png(tmp_path / "b/1.png", 9, (48, 60))
    assert load(tmp_path).train.images.shape == (3, 40, 40)  # median shorter side 44, down to a multiple of 8
    assert load(tmp_path, size=20).train.images.shape == (3, 20, 20)
    assert load(tmp_path, size=(10, 20)).train.images.shape == (3, 10, 20)
    png(tmp_path / "b/1.png", 9, (100, 40))
    assert load(tmp_path).train.images.shape == (3, 40, 40)  # alike, but larger than 64
    png(tmp_path / "a/1.png", 9, (30, 20))
    png(tmp_path / "b/1.png", 9, (30, 20))
    assert load(tmp_path).train.images.shape == (3, 20, 30)  # alike and small: as they are


def test_large_images_come_down_to_64_and_the_centre_is_kept(tmp_path: Path) -> None:
    for name in "ab":
        image = Image.new("RGB", (900, 300), "black")
        image.paste("white", (300, 0, 600, 300))
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.jpg", quality=95)
    source = load(tmp_path)
    assert source.train.images.shape == (3, 64, 64)
    assert array(source)[:, :, 2:-2].min() > 245


def test_the_first_image_does_not_decide_for_the_others(tmp_path: Path) -> None:
    png(tmp_path / "a/1.png", 200, mode="L")
    png(tmp_path / "b/1.png", 200, (24, 24), mode="RGB")
    source = load(tmp_path)
    assert source.train.images.shape == (3, 16, 16)
    assert array(source)[0, 0, 0].tolist() == [200, 200, 200]
    assert array(source)[1, 0, 0].tolist() == [200, 0, 0]


def test_grey_and_deep_grey_have_one_channel(tmp_path: Path) -> None:
    png(tmp_path / "a/1.png", 1, mode="1")
    png(tmp_path / "b/1.png", 77, mode="L")
    Image.fromarray(np.full((16, 16), 50_000, dtype=np.uint16)).save(tmp_path / "b/2.png")
    source = load(tmp_path)
    assert source.train.images.shape == (1, 16, 16)
    assert array(source)[:, 0, 0, 0].tolist() == [255, 77, 50_000 // 256]
    assert load(tmp_path, channels=3).train.images.shape == (3, 16, 16)


def test_transparency_is_white_and_orientation_applied(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a/1.png")
    left_white = Image.new("RGB", (16, 16))
    left_white.paste("white", (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    left_white.save(tmp_path / "b/1.jpg", exif=exif, quality=95)
    images = array(load(tmp_path))
    assert (images[0] == 255).all()
    assert images[1, 2].min() > 240  # what was on the left is on top
    assert images[1, 13].max() < 15


def test_corrupt_images_are_named_and_refused_or_skipped(folder: Path) -> None:
    good = encoded(7)
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    (folder / "dog" / "short.png").write_bytes(good[: len(good) // 2])
    line = fails(folder, "2 of 8", "cat/broken.png", "skip")
    assert str(folder) in line
    source = load(folder, on_bad_image="skip")
    assert len(source.train) == 6
    assert source.train.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert "cat/broken.png" in source.notes[0]
    assert "dog/short.png" in source.notes[0]
    fails(folder, "refuse or skip", on_bad_image="ignore")


def test_a_zip_with_only_corrupt_images_is_refused_even_when_skipping(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a/1.png": b"x", "b/1.png": b"y"})
    fails(path, "2 of 2", on_bad_image="skip")


def test_a_huge_zip_member_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LARGEST_FILE", 10_000)
    path = zipped(tmp_path / "bomb.zip", {"a/1.png": encoded(1), "b/1.png": bytes(10_001)})
    fails(path, "b/1.png", "larger than")


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, body, b"IEND")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    path = zipped(tmp_path / "x.zip", {"a/1.png": data, "b/1.png": encoded(1)})
    fails(path, "a/1.png", "pixels")


def test_nothing_to_load(tmp_path: Path) -> None:
    fails(tmp_path, "must hold images", "nothing")
    (tmp_path / "notes.txt").write_text("x")
    fails(tmp_path, "1 other files")
    fails(tmp_path / "missing.zip", "must exist")
    fails(tmp_path / "notes.txt", "folder, a .zip or an .npz")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    fails(tmp_path / "bad.zip", "readable zip")
    fails("cifar1O", "did you mean cifar10")
    fails(3, "a name, a path", "int")
    fails([], "at least one")
    fails("digits", "4 to 1024", size=2)
    fails("digits", "1 or 3", channels=2)


def test_images_without_class_folder(folder: Path, tmp_path: Path) -> None:
    png(folder / "stray.png")
    fails(folder, "1 do not", "stray.png", "unlabelled/")
    png(tmp_path / "flat" / "1.png")
    fails(tmp_path / "flat", "labels.csv", "neither")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a/1.png": encoded(1)})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the local header
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(bytes(data))
    fails(path, "encrypted")


@pytest.mark.parametrize("archive", [False, True])
def test_streaming_gives_the_same_pixels(folder: Path, tmp_path: Path, archive: bool) -> None:
    spec = folder
    if archive:
        spec = zipped(tmp_path / "x.zip", {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")})
    memory, streamed = load(spec), load(spec, memory_limit=1000)
    assert isinstance(streamed.train.images, StreamedImages)
    assert "decoded while training" in streamed.notes[0]
    index = torch.tensor([5, 0, 3, 3])
    again = pickle.loads(pickle.dumps(streamed.train.images))  # noqa: S301
    for images in (streamed.train.images, again):
        for _ in range(2):  # decoded, then from the cache
            taken = images.take(index)
            assert torch.equal(taken, memory.train.images.take(index))
            assert taken.is_contiguous(memory_format=torch.channels_last)


def test_the_stream_cache_keeps_to_its_size_and_names_a_broken_file(folder: Path) -> None:
    images = load(folder, memory_limit=1000).train.images
    assert isinstance(images, StreamedImages)
    small = StreamedImages(images.files, images.names, images.shape, cache_bytes=2 * 16 * 16 * 3)
    small.take(torch.arange(6))
    assert len(small._cache) == 2
    (folder / "cat/0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cat/0\.png"):
        small.take(torch.tensor([0]))


def test_pictures_for_prediction_need_no_labels(folder: Path) -> None:
    png(folder / "stray.png", 5)
    data, notes = load_pictures(folder, (1, 8, 8))
    assert data.images.shape == (1, 8, 8)
    assert len(data) == 7
    assert (data.label == -1).all()
    assert notes == ()
    single, _ = load_pictures(folder / "stray.png", (3, 16, 16))
    assert single.names == ("stray.png",)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds none"):
        load_pictures(folder / "empty", (3, 8, 8))


def test_lists_are_put_together_by_class_name(folder: Path, tmp_path: Path) -> None:
    png(tmp_path / "more/dog/x.png", 50, (30, 40))
    png(tmp_path / "more/eel/y.png", 60, (30, 40))
    data = load([str(folder), str(tmp_path / "more")]).train
    assert data.classes == ("cat", "dog", "eel")
    assert data.label.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert data.images.shape == (3, 16, 16)


# arrays


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: x,
        lambda x: x.transpose(0, 3, 1, 2),
        lambda x: (x / 255).astype(np.float32),
        lambda x: x.astype(np.int64),
    ],
)
def test_npz_takes_every_kind_of_image(tmp_path: Path, kind: Callable[[np.ndarray], np.ndarray]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 10, 3)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=kind(images), labels=[5, 5, 7, 7, -1, 9], groups=["u", "v", "u", "v", "", "u"])
    data = load(tmp_path / "x.npz").train
    assert isinstance(data.images, ArrayImages)
    assert (data.images.array == images).all()
    assert data.classes == ("5", "7", "9")
    assert data.label.tolist() == [0, 0, 1, 1, -1, 2]
    assert data.groups == ("u", "v")
    assert data.group is not None
    assert data.group.tolist() == [0, 1, 0, 1, -1, 0]


def test_npz_with_a_test_part_grey_images_and_a_size(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "x.npz",
        images=np.full((4, 10, 12), 9, dtype=np.uint8),
        labels=["b", "a", "", "b"],
        test_images=np.full((2, 10, 12), 8, dtype=np.uint8),
        test_labels=["b", "b"],
    )
    source = load(tmp_path / "x.npz", size=8)
    assert source.train.images.shape == (1, 8, 8)
    assert source.train.label.tolist() == [1, 0, -1, 1]
    assert source.test is not None
    assert source.test.images.shape == (1, 8, 8)
    assert source.test.label.tolist() == [1, 1]
    assert source.test.classes == ("a", "b")
    assert (array(source) == 9).all()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": [1]}, ("images", "labels")),
        ({"images": np.zeros((2, 8)), "labels": [0, 1]}, ("[N,H,W]", "(2, 8)")),
        ({"images": np.zeros((2, 8, 8, 4)), "labels": [0, 1]}, ("1 or 3 channels",)),
        ({"images": np.full((2, 8, 8), 7.0), "labels": [0, 1]}, ("[0, 1]", "7")),
        ({"images": np.full((2, 8, 8), np.nan), "labels": [0, 1]}, ("[0, 1]", "nan")),
        ({"images": np.full((2, 8, 8), 300), "labels": [0, 1]}, ("0 .. 255", "300")),
        ({"images": np.zeros((2, 8, 8), complex), "labels": [0, 1]}, ("numbers", "complex")),
        ({"images": np.zeros((0, 8, 8)), "labels": []}, ("at least one",)),
        ({"images": np.zeros((2, 8, 8)), "labels": [0, 1, 2]}, ("2 images", "(3,)")),
        ({"images": np.zeros((2, 8, 8)), "labels": [0.5, 1]}, ("whole numbers",)),
        ({"images": np.zeros((2, 8, 8)), "labels": [0, -2]}, ("at least -1", "-2")),
        ({"images": np.zeros((2, 8, 8)), "labels": [0, 2], "classes": ["a", "b"]}, ("2 classes", "got 2")),
        ({"images": np.zeros((2, 8, 8)), "labels": ["a", "c"], "classes": ["a", "b"]}, ("'c'",)),
        ({"images": np.array([None, 1], dtype=object), "labels": [0, 1]}, ("plain .npz",)),
    ],
)
def test_npz_that_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    fails(tmp_path / "x.npz", "x.npz", *words)


def test_npz_that_is_none(tmp_path: Path) -> None:
    fails(tmp_path / "x.npz", "must exist")
    (tmp_path / "x.npz").write_bytes(b"abc")
    fails(tmp_path / "x.npz", "plain .npz")


def test_arrays_from_python() -> None:
    data = load((np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1])), flip=False).train
    assert data.label.tolist() == [0, 1, 1]
    assert not data.flip
    assert load(data).train is data
    fails((np.zeros(3),), "images, labels", "1")


# embedded and named sets


def test_digits() -> None:
    data = load("digits").train
    assert len(data) == 1797
    assert data.images.shape == (1, 16, 16)
    assert np.bincount(data.label).min() > 170
    assert not data.flip
    taken = data.images.take(torch.arange(100))
    assert taken.max() > 240
    assert load("digits", size=8, channels=3).train.images.shape == (3, 8, 8)


def idx(path: Path, data: np.ndarray) -> None:
    """Writes MNIST's own format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes())


def test_torchvision_sets_are_read_from_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    idx(raw / "train-images-idx3-ubyte", images)
    idx(raw / "train-labels-idx1-ubyte", np.array([3, 1, 2, 0, 1, 3], dtype=np.uint8))
    idx(raw / "t10k-images-idx3-ubyte", images[:2])
    idx(raw / "t10k-labels-idx1-ubyte", np.array([9, 0], dtype=np.uint8))
    source = load("mnist", data_root=tmp_path)
    assert (array(source)[..., 0] == images).all()
    assert source.train.label.tolist() == [3, 1, 2, 0, 1, 3]
    assert source.test is not None
    assert source.test.label.tolist() == [9, 0]
    assert source.train.classes[9].startswith("9")
    assert not source.train.flip
    monkeypatch.setenv("LABELWISE_DATA", str(tmp_path))
    assert len(load("mnist", size=14).train) == 6


def test_stl10_brings_its_unlabelled_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    base = tmp_path / "stl10_binary"
    base.mkdir()
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    for part, n in (("train", 3), ("test", 2), ("unlabeled", 4)):
        np.full((n, 3, 96, 96), n, dtype=np.uint8).tofile(base / f"{part}_X.bin")
        (np.arange(n) + 1).astype(np.uint8).tofile(base / f"{part}_y.bin")
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    source = load("stl10", data_root=tmp_path)
    assert source.train.images.shape == (3, 64, 64)
    assert source.train.label.tolist() == [0, 1, 2, -1, -1, -1, -1]
    assert source.test is not None
    assert source.test.label.tolist() == [0, 1]
    assert source.train.classes == tuple("abcdefghij")


def test_a_download_that_is_impossible_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error

    from torchvision.datasets import CIFAR10

    def offline(self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", offline)
    fails("cifar10", str(tmp_path), "no route to host", "torchvision.datasets.CIFAR10", "LABELWISE_DATA", data_root=tmp_path)


# the real zips


@needs_shared
def test_cifar_zip() -> None:
    data = load(SHARED / "cifar10-jpeg-5k-test.zip").train
    assert len(data) == 5000
    assert data.images.shape == (3, 32, 32)
    assert data.classes[0] == "airplane"
    assert len(data.classes) == 10
    assert (np.bincount(data.label) > 400).all()
    assert data.flip


@needs_shared
@pytest.mark.slow
def test_cifar_training_zip_decodes_whole() -> None:
    data = load(SHARED / "cifar10-jpeg-20k-train.zip").train
    assert len(data) == 20_000
    assert isinstance(data.images, ArrayImages)
    assert (data.images.array.reshape(20_000, -1).std(axis=1) > 0).all()


@needs_shared
def test_omniglot_zip() -> None:
    data = load(SHARED / "omniglot-background-small1.zip", size=28).train
    assert data.images.shape == (1, 28, 28)
    assert data.groups == ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    assert len(data.classes) == 136
    assert (np.bincount(data.label) == 20).all()
    assert not data.flip
    mean = data.images.take(torch.arange(len(data))).float().mean() / 255
    assert 0.8 < mean < 0.99  # ink on white
