"""Picture sheets of findings: images side by side with a line or two beneath each, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from orchestrator.care.looks import Part
from orchestrator.care.records import Finding, Kind, Place

SHOWN = 48
"""Images of a sheet, at most; the lists have all."""

ACROSS = 8

TILE, GAP, LINE = 112, 10, 14
"""Pixels: side of an image, space around it, height of a line of text."""

_INK, _MARK, _PAPER = (28, 35, 48), (163, 52, 43), (255, 255, 255)

Pixels = Callable[[Place], NDArray[np.uint8]]
"""uint8 [H, W, C] of an image."""


@dataclass(frozen=True)
class Tile:
    """An image of a sheet, with the line beneath it and a second one in red."""

    place: Place
    line: str
    marked: str


def draw_sheet(kind: Kind, findings: Sequence[Finding], pixels: Pixels) -> bytes:
    """The first images of a list as a PNG; those of one finding stand together."""
    tiles = [tile for finding in findings[:SHOWN] for tile in tiles_of(kind, finding)][:SHOWN]
    rows = -(-len(tiles) // ACROSS)
    across = min(len(tiles), ACROSS)
    high = TILE + 2 * LINE + GAP
    sheet = Image.new("RGB", (GAP + across * (TILE + GAP), GAP + rows * high), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, ACROSS)
        x, y = GAP + column * (TILE + GAP), GAP + row * high
        image = _enlarged(pixels(tile.place))
        sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
        for place, (text, colour) in enumerate(((tile.line, _INK), (tile.marked, _MARK))):
            pen.text((x, y + TILE + 2 + place * LINE), _cut(text, font), fill=colour, font=font)
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    return out.getvalue()


def tiles_of(kind: Kind, finding: Finding) -> list[Tile]:
    """The images of a finding with what is written beneath them."""
    first = finding.images[0]
    if kind == "label_errors":
        return [Tile(first, first.label, f"{finding.said}?")]
    if kind == "odd_images":
        return [
            Tile(first, first.label or first.file, finding.said if finding.said == "one colour" else f"{finding.score:.1f} sd")
        ]
    if kind == "leaks":
        test, train = finding.images
        return [Tile(test, f"test: {test.label}", finding.said), Tile(train, f"train: {train.label}", f"{finding.score:.3f}")]
    return [Tile(place, place.label or place.file, f"{finding.said} {finding.score:.3f}") for place in finding.images[:ACROSS]]


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels.squeeze()).convert("RGB")
    scale = TILE / max(image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"


def pixels_of(parts: Sequence[Part]) -> Pixels:
    """Looks an image up in its part."""
    images = {part.name: part.images for part in parts}

    def pixels(place: Place) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = images[place.part].take(torch.tensor([place.position]))[0].permute(1, 2, 0).numpy()
        return found

    return pixels
