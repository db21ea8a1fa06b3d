"""``glyphs``: characters of many scripts rendered from the fonts that matplotlib ships.

One class a character, one group a script; every image has further labels (family, weight, slant, size, position) and a caption
such as "a bold italic small glyph of latin capital letter a at the top left in serif". Of characters whose shapes hardly
differ (Latin A and Greek Alpha, o and O) only the first is a class; characters that a font lacks are not drawn in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from methods.data.records import ArrayImages, ImageSet, LabelColumn, Source

PER_CLASS = 20


@dataclass(frozen=True)
class Face:
    """A font file and how its letters look."""

    file: str
    family: str
    bold: bool = False
    italic: bool = False
    latin_only: bool = False


FACES = (
    Face("DejaVuSans.ttf", "sans"),
    Face("DejaVuSans-Bold.ttf", "sans", bold=True),
    Face("DejaVuSans-Oblique.ttf", "sans", italic=True),
    Face("DejaVuSans-BoldOblique.ttf", "sans", bold=True, italic=True),
    Face("DejaVuSansMono.ttf", "mono"),
    Face("DejaVuSansMono-Bold.ttf", "mono", bold=True),
    Face("DejaVuSansMono-Oblique.ttf", "mono", italic=True),
    Face("DejaVuSansMono-BoldOblique.ttf", "mono", bold=True, italic=True),
    Face("DejaVuSerif.ttf", "serif"),
    Face("DejaVuSerif-Bold.ttf", "serif", bold=True),
    Face("DejaVuSerif-Italic.ttf", "serif", italic=True),
    Face("DejaVuSerif-BoldItalic.ttf", "serif", bold=True, italic=True),
    Face("STIXGeneral.ttf", "times"),
    Face("STIXGeneralBol.ttf", "times", bold=True),
    Face("STIXGeneralItalic.ttf", "times", italic=True),
    Face("STIXGeneralBolIta.ttf", "times", bold=True, italic=True),
    # Computer Modern follows TeX's own encoding, which agrees with Unicode for letters and digits alone.
    Face("cmr10.ttf", "modern", latin_only=True),
    Face("cmb10.ttf", "modern", bold=True, latin_only=True),
    Face("cmti10.ttf", "modern", italic=True, latin_only=True),
    Face("cmss10.ttf", "sans modern", latin_only=True),
    Face("cmtt10.ttf", "mono modern", latin_only=True),
)

# First and last code point of what is drawn, by script. Letters with accents are left out: a dot is no class of its own.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "digits": ((0x30, 0x39),),
    "latin": ((0x41, 0x5A), (0x61, 0x7A)),
    "greek": ((0x391, 0x3A9), (0x3B1, 0x3C9)),
    "cyrillic": ((0x410, 0x44F),),
    "armenian": ((0x531, 0x556), (0x561, 0x586)),
    "georgian": ((0x10D0, 0x10F0),),
    "hebrew": ((0x5D0, 0x5EA),),
    "arabic": ((0x621, 0x64A),),
    "nko": ((0x7CA, 0x7EA),),
    "lao": ((0xE81, 0xEAE),),
    "canadian": ((0x1401, 0x14EA),),
    "tifinagh": ((0x2D30, 0x2D65),),
    "lisu": ((0xA4D0, 0xA4F7),),
    "mathematical": ((0x2200, 0x22A5),),
}
SIZES = {"small": 0.5, "medium": 0.64, "large": 0.78}
POSITIONS = {
    "at the centre": (0.0, 0.0),
    "at the top left": (-1.0, -1.0),
    "at the top right": (1.0, -1.0),
    "at the bottom left": (-1.0, 1.0),
    "at the bottom right": (1.0, 1.0),
}
# Mean absolute difference of two characters' 16 x 16 outlines below which they count as one.
ALIKE = 0.09


@dataclass(frozen=True)
class Glyph:
    """One image to draw; numbers count into the characters, FACES, SIZES and POSITIONS. ``jitter`` in [-1, 1]."""

    character: int
    face: int
    size: int
    position: int
    jitter: tuple[float, float]


@dataclass(frozen=True)
class Character:
    """A code point with its script, name and the faces that can draw it."""

    code: int
    script: str
    name: str
    faces: tuple[int, ...]


def load_glyphs(size: int = 28, per_class: int = PER_CLASS, seed: int = 0) -> Source:
    """uint8 images [N, size, size, 1], white on black, ``per_class`` of each character; a fixed function of the arguments."""
    characters = _distinct(_characters())
    plan = list(_plan(characters, per_class, seed))
    fonts = [[ImageFont.truetype(_path(face), round(size * scale)) for scale in SIZES.values()] for face in FACES]
    array = np.stack([_draw(chr(characters[g.character].code), fonts[g.face][g.size], g, size) for g in plan])
    return Source(_describe(array[..., None], plan, characters))


def _path(face: Face) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / face.file)


def _characters() -> list[Character]:
    maps = [FT2Font(_path(face)).get_charmap() for face in FACES]
    found = []
    for script, ranges in SCRIPTS.items():
        for code in (code for first, last in ranges for code in range(first, last + 1)):
            letter = script in ("digits", "latin")
            faces = tuple(f for f, face in enumerate(FACES) if maps[f].get(code, 0) and (letter or not face.latin_only))
            name = unicodedata.name(chr(code), "").lower()
            # Every character takes part in at least two faces, and the first is upright: outlines are compared in it.
            if len(faces) > 1 and faces[0] == 0 and name:
                found.append(Character(code, script, name, faces))
    return found


def _distinct(characters: list[Character]) -> list[Character]:
    """Without characters that look like an earlier one."""
    font = ImageFont.truetype(_path(FACES[0]), 48)
    kept: list[Character] = []
    outlines = np.empty((len(characters), 16, 16), dtype=np.float32)
    for character in characters:
        outline = _outline(chr(character.code), font)
        if outline is not None and not (np.abs(outlines[: len(kept)] - outline).mean(axis=(1, 2)) < ALIKE).any():
            outlines[len(kept)] = outline
            kept.append(character)
    return kept


def _outline(text: str, font: ImageFont.FreeTypeFont) -> NDArray[np.float32] | None:
    """[16, 16] in [0, 1]: the character cut out, centred in a square and scaled; None for a blank one."""
    left, top, right, bottom = map(int, font.getbbox(text))
    if right <= left or bottom <= top:
        return None
    side = max(right - left, bottom - top)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(((side - right - left) / 2, (side - bottom - top) / 2), text, font=font, fill=255)
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


def _plan(characters: list[Character], per_class: int, seed: int) -> Iterator[Glyph]:
    """Which images to draw: per character distinct combinations of face, size and position, faces in turn."""
    for k, character in enumerate(characters):
        random = np.random.default_rng([seed, character.code])
        looks = [(s, p) for s in range(len(SIZES)) for p in range(len(POSITIONS))]
        order = {f: random.permutation(len(looks)) for f in character.faces}
        faces = random.permutation(character.faces)
        for i in range(min(per_class, len(faces) * len(looks))):
            turn, face = i // len(faces), int(faces[i % len(faces)])
            size, position = looks[order[face][turn]]
            yield Glyph(k, face, size, position, (random.uniform(-1, 1), random.uniform(-1, 1)))


def _draw(text: str, font: ImageFont.FreeTypeFont, glyph: Glyph, size: int) -> NDArray[np.uint8]:
    left, top, right, bottom = font.getbbox(text)
    x, y = list(POSITIONS.values())[glyph.position]
    # The glyph never leaves the picture: it moves within 60% of the free room, and by 20% at random.
    room = max(0.0, (size - right + left) / 2), max(0.0, (size - bottom + top) / 2)
    x, y = room[0] * (0.6 * x + 0.2 * glyph.jitter[0]), room[1] * (0.6 * y + 0.2 * glyph.jitter[1])
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).text(((size - right - left) / 2 + x, (size - bottom - top) / 2 + y), text, font=font, fill=255)
    return np.asarray(image)


def _describe(array: NDArray[np.uint8], plan: list[Glyph], characters: list[Character]) -> ImageSet:
    scripts = tuple(SCRIPTS)
    label = np.array([g.character for g in plan], dtype=np.int64)
    families = tuple(sorted({face.family for face in FACES}))
    captions = tuple(_caption(FACES[g.face], characters[g.character], g) for g in plan)

    def column(name: str, classes: tuple[str, ...], label: list[int]) -> LabelColumn:
        return LabelColumn(name, classes, np.array(label, dtype=np.int64))

    return ImageSet(
        images=ArrayImages(array),
        label=label,
        classes=tuple(character.name for character in characters),
        group=np.array([scripts.index(characters[k].script) for k in label], dtype=np.int64),
        groups=scripts,
        captions=captions,
        flip=False,
        caption_labels=True,
        targets=(
            column("family", families, [families.index(FACES[g.face].family) for g in plan]),
            column("weight", ("regular", "bold"), [int(FACES[g.face].bold) for g in plan]),
            column("slant", ("upright", "italic"), [int(FACES[g.face].italic) for g in plan]),
            column("size", tuple(SIZES), [g.size for g in plan]),
            column("position", tuple(POSITIONS), [g.position for g in plan]),
        ),
    )


def _caption(face: Face, character: Character, glyph: Glyph) -> str:
    look = f"{'bold' if face.bold else 'regular'} {'italic' if face.italic else 'upright'}"
    return f"a {look} {list(SIZES)[glyph.size]} glyph of {character.name} {list(POSITIONS)[glyph.position]} in {face.family}"
