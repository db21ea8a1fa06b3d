"""Captions: words to numbers, and whether the words give the class away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from methods.data.records import IntArray


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """Every word of the texts once, lower case, in alphabetical order."""
    return tuple(sorted({word for text in texts for word in text.lower().split()}))


def encode(texts: Sequence[str], words: Sequence[str]) -> IntArray:
    """int64 [N, L]: one token a word, counted from 1 in ``words``; 0 pads. Words that are not in it are left out."""
    number = {word: k for k, word in enumerate(words, start=1)}
    rows = [[number[word] for word in text.lower().split() if word in number] for text in texts]
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
    told = [classes[k].lower() in text.lower() for k, text in zip(label, captions, strict=False) if k >= 0 and text]
    return sum(told) > len(told) / 2
