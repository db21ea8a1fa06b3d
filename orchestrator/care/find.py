"""From parts of a data set to all that is found in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from orchestrator.care.copies import copies, leaks, near_duplicates
from orchestrator.care.label_errors import NEEDS, Judged, can_be_found, label_errors
from orchestrator.care.likeness import likeness
from orchestrator.care.looks import Looks, Part, look
from orchestrator.care.odd import odd_images
from orchestrator.care.records import LEARNT, Care, Finding, Kind, Likeness

FEW = "there are no two classes with two labels each"

AGREED = 0.5
"""Share of the labels that models must agree with to judge any."""

NO_TEST = "there are no test images"

THUMBNAILS = "thumbnails of 16×16 pixels, since no pretrained encoder has seen the images"


def find(
    parts: Sequence[Part],
    by: str,
    judge: Callable[[Looks], Judged | None],
    unjudged: str,
    seed: int,
    past: str = "",
    compared: bool = True,
) -> Care:
    """Looks for everything.

    Args:
        parts: the training images, and the test images where there are any.
        by: the encoder that embedded them, in words; not used where none has.
        judge: what models that have not learnt from the labels think of them.
        unjudged: why it has nothing to say, where it has not.
        seed: of the draws.
        past: what the encoder may have seen before.
        compared: whether labelled images should be like the others: not where a test asks about other classes.
    """
    looks = look(parts)
    near = copies(looks)
    found: dict[Kind, tuple[Finding, ...]] = {
        "near_duplicates": near_duplicates(looks, near),
        "leaks": leaks(looks, near),
        "odd_images": odd_images(looks, near),
    }
    left_out: dict[Kind, str] = {} if len(looks.parts) > 1 else {"leaks": NO_TEST}
    judged = judge(looks) if can_be_found() else None
    train = looks.parts[0]
    if judged is None:
        left_out["label_errors"] = unjudged if can_be_found() else NEEDS
    elif judged.accuracy < AGREED:
        left_out["label_errors"] = f"{LEARNT} agree with {judged.accuracy:.1%} of the labels, too few to judge by"
    else:
        found["label_errors"] = label_errors(judged, train.classes, train.place)
    return Care(
        by=by if looks.embedded else THUMBNAILS,
        trained=len(train),
        tested=sum(len(part) for part in looks.parts[1:]),
        found=found,
        left_out=left_out,
        labels=0 if judged is None else len(judged.index),
        accuracy=None if judged is None else judged.accuracy,
        likeness=_likeness(looks, seed) if compared else (),
        past=past,
    )


def _likeness(looks: Looks, seed: int) -> tuple[Likeness, ...]:
    """The labelled images against the unlabelled ones, and against the test."""
    train, x = looks.parts[0], looks.features
    labelled = torch.from_numpy(train.label >= 0)
    own, test = x[: len(train)], x[len(train) :]
    said = "labelled images"
    found = (
        likeness(said, own[labelled], "unlabelled images", own[~labelled], seed),
        likeness(said, own[labelled], "test images", test, seed),
    )
    return tuple(each for each in found if each is not None)
