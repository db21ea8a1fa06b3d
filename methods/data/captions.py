"""Captions: texts to words, words to numbers, and whether the words give the class away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from methods.data.records import IntArray

WORD = re.compile(r"[^\W_]+|[^\w\s/]")
"""Letters and digits together, and every other sign by itself; underscores, slashes and white space part words."""


def words_of(text: str) -> list[str]:
    """The words of a caption or of a class name, lower case: both are read alike, so that a name is found in a caption."""
    return WORD.findall(text.lower())


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word of the texts once, in alphabetical order."""
    return tuple(sorted({word for text in texts for word in words_of(text)}))


def encode(texts: Sequence[str], words: Sequence[str]) -> IntArray:
    """int64 [N, L]: one token a word, counted from 1 in ``words``; 0 pads. Words that are not in it are left out."""
    number = {word: k for k, word in enumerate(words, start=1)}
    rows = [[number[word] for word in words_of(text) if word in number] for text in texts]
    tokens = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for row, known in zip(tokens, rows, strict=True):
        row[: len(known)] = known
    return tokens


def tell_classes(captions: Sequence[str], label: IntArray, classes: Sequence[str]) -> bool:
    """Whether captions are labels in other words: more than half of those of labelled images spell out the class.

    Args:
        captions: one for each image, blank where there is none; or ().
        label: int64 [N], -1 where unlabelled.
        classes: class names; ``label`` counts into them.
    """
    if not captions:
        return False
    names = [" ".join(words_of(name)) for name in classes]
    told = [names[k] in " ".join(words_of(text)) for k, text in zip(label, captions, strict=True) if k >= 0 and text]
    return sum(told) > len(told) / 2
