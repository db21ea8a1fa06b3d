"""What is said of findings: a line for each list, and the sentences that a verdict cannot leave out."""

from __future__ import annotations

from orchestrator.care.records import KINDS, LEARNT, Care, Likeness


def summary(care: Care) -> list[str]:
    """A line for each list, then what the verdict says beyond leaks."""
    lines = [f"{care.trained:,} training images, {care.tested:,} test images{_drawn(care)}, seen by {care.by}."]
    for kind, what in KINDS.items():
        if kind in care.left_out:
            lines.append(f"{what}: not looked for, {care.left_out[kind]}")
            continue
        lines.append(f"{what}: {len(care.found[kind]):,}{_of(care, kind)}")
    return lines + [sentence for sentence in (*map(unlike, care.likeness), care.past) if sentence]


def _drawn(care: Care) -> str:
    """How many there are, where not all were compared."""
    train, test = care.drawn_from
    if train <= care.trained and test <= care.tested:
        return ""
    return f" (drawn from {max(train, care.trained):,} and {max(test, care.tested):,})"


def _of(care: Care, kind: str) -> str:
    if kind == "near_duplicates":
        return f" groups, {sum(len(finding.images) for finding in care.found['near_duplicates']):,} images in all"
    if kind == "leaks":
        return f" of {care.tested:,} ({_exact(care)} exact)"
    if kind == "label_errors" and care.accuracy is not None:
        return f" among {care.labels:,} labels; {LEARNT} agree with {care.accuracy:.1%} of them"
    return ""


def sentences(care: Care) -> tuple[str, ...]:
    """Of the verdict: leaks in any case, unlike parts, and what the encoder may have seen."""
    return tuple(sentence for sentence in (leaked(care), *map(unlike, care.likeness), care.past) if sentence)


def leaked(care: Care) -> str:
    """How many test images are in the training images too; blank without a test."""
    if not care.tested:
        return ""
    count = len(care.found["leaks"])
    if not count:
        compared = f" Compared were {care.trained:,} and {care.tested:,} images{_drawn(care)}." if _drawn(care) else ""
        return f"No test image is a copy of a training image, exactly or nearly.{compared}"
    share = count / care.tested
    return (
        f"{count:,} of {care.tested:,} test images ({share:.1%}) are copies of training images, {_exact(care)} of them exact:"
        f" the test may say up to {share:.1%} too much; care/leaks.csv names them."
    )


def unlike(found: Likeness) -> str:
    """The sentence on two parts that are not alike; blank where they are."""
    if found.alike:
        return ""
    return (
        f"The {found.one} are not like the {found.other}: a classifier tells them apart (AUC {found.auc:.2f}, 0.50 by chance;"
        f" p {found.p:.3f}), so a prediction from the former does not hold for the latter."
    )


def _exact(care: Care) -> int:
    return sum(finding.said == "exact" for finding in care.found["leaks"])
