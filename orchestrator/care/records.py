"""What is found in a data set: findings, comparisons of its parts, and how they were looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["label_errors", "near_duplicates", "leaks", "odd_images"]

KINDS: Mapping[Kind, str] = {
    "label_errors": "likely label errors",
    "near_duplicates": "near duplicates",
    "leaks": "test images that are in the training images too",
    "odd_images": "odd images",
}
"""The lists, in the order in which they are told, and what each holds."""


LEARNT = "models that have not learnt from a label"


@dataclass(frozen=True)
class Place:
    """One image.

    Attributes:
        part: ``train`` or ``test``.
        position: in the part's images.
        file: its name where it has one, else its number.
        label: its class; blank where it has none.
    """

    part: str
    position: int
    file: str
    label: str = ""


@dataclass(frozen=True)
class Finding:
    """One entry of a list.

    Attributes:
        images: one image; the test image and the training image it resembles; or all images of a group of near duplicates.
        score: for label errors the quality of the label, 0 to 1; for near duplicates and leaks the similarity, 1 for exact
            copies; for odd images the distance to other images, in robust standard deviations above the median.
        said: for label errors the likelier class, for copies ``exact`` or ``near``, for odd images why.
    """

    images: tuple[Place, ...]
    score: float
    said: str


@dataclass(frozen=True)
class Likeness:
    """Whether two parts of the data look alike, by a classifier that is asked to tell them apart.

    Attributes:
        one, other: the parts, in words.
        n_one, n_other: images that were compared.
        auc: area under the classifier's ROC curve on images that it was not fitted on; about 0.5 where the parts are alike.
        p: share of random divisions of the same images that are told apart as well.
    """

    one: str
    other: str
    n_one: int
    n_other: int
    auc: float
    p: float

    @property
    def alike(self) -> bool:
        """False where the difference is neither chance nor small."""
        return not (self.p <= P_LIMIT and self.auc >= AUC_LIMIT)


P_LIMIT, AUC_LIMIT = 0.01, 0.6
"""Parts count as unlike where chance tells them apart as well in at most this share of draws, and the AUC is at least this."""


@dataclass(frozen=True)
class Care:
    """All that was found.

    Attributes:
        by: what images were compared by, in words.
        trained, tested: images of the two parts that were compared.
        drawn_from: images of the two parts, where not all were compared.
        found: the lists.
        left_out: why a list was not made.
        labels: labels that were held against a model which had not learnt from them.
        accuracy: share of them that the models agree with; None where there were none.
        likeness: comparisons of the parts.
        past: a sentence on what the encoder may have seen before; blank where it has seen nothing.
    """

    by: str
    trained: int
    tested: int
    found: Mapping[Kind, tuple[Finding, ...]]
    left_out: Mapping[Kind, str] = field(default_factory=dict)
    labels: int = 0
    accuracy: float | None = None
    likeness: tuple[Likeness, ...] = ()
    past: str = ""
    drawn_from: tuple[int, int] = (0, 0)
