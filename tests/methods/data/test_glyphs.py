"""The embedded glyphs: deterministic, all there, and what their captions say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from methods.data import glyphs
from methods.data.records import ArrayImages, ImageSet
from methods.data.sources import load


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load("glyphs").train


def test_many_classes_and_several_scripts(data: ImageSet) -> None:
    assert data.images.shape == (1, 28, 28)
    assert len(data.classes) > 400
    assert (np.bincount(data.label) == glyphs.PER_CLASS).all()
    assert data.group is not None
    assert len(np.unique(data.group)) >= 12
    assert not data.flip
    # A class lies in one group.
    assert len(set(zip(data.label.tolist(), data.group.tolist(), strict=True))) == len(data.classes)


def test_no_image_is_blank_cut_off_or_twice(data: ImageSet) -> None:
    assert isinstance(data.images, ArrayImages)
    array = data.images.array[..., 0]
    assert (array.reshape(len(array), -1).max(axis=1) > 60).all()
    border = np.concatenate([array[:, 0], array[:, -1], array[:, :, 0], array[:, :, -1]], axis=1)
    assert (border.max(axis=1) > 200).mean() < 0.01
    distinct = len({image.tobytes() for image in array})
    assert distinct > 0.99 * len(array)


def test_the_same_seed_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "SCRIPTS", {"latin": glyphs.SCRIPTS["latin"], "greek": glyphs.SCRIPTS["greek"]})
    first, again, other = (glyphs.load_glyphs(per_class=3, seed=seed).train for seed in (0, 0, 1))
    arrays = [part.images.array for part in (first, again, other) if isinstance(part.images, ArrayImages)]
    assert (arrays[0] == arrays[1]).all()
    assert first.captions == again.captions
    assert (arrays[0] != arrays[2]).any()


def test_captions_say_what_the_further_labels_say(data: ImageSet) -> None:
    values = {column.name: [column.classes[k] for k in column.label] for column in data.targets}
    assert set(values) == {"family", "weight", "slant", "size", "position"}
    for i in range(0, len(data), 97):
        v = {name: found[i] for name, found in values.items()}
        name = data.classes[data.label[i]]
        assert data.captions[i] == f"a {v['weight']} {v['slant']} {v['size']} glyph of {name} {v['position']} in {v['family']}"
    assert data.caption_labels
    assert all(data.captions)


def test_no_font_draws_its_box_for_a_missing_character() -> None:
    for character in glyphs._characters()[::17]:
        for f in character.faces:
            font = ImageFont.truetype(glyphs._path(glyphs.FACES[f]), 20)
            drawn, missing = font.getmask(chr(character.code)), font.getmask("\U000e0fff")
            assert drawn.size != missing.size or bytes(drawn) != bytes(missing)
