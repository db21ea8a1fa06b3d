"""What is left of a check: a CSV and a picture sheet for each list, and ``care.json`` with all of it for programs.

::

    label_errors.csv   near_duplicates.csv   leaks.csv   odd_images.csv
    label_errors.png   and so on, of lists that hold any
    care.json          all of it, for programs
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pydantic import TypeAdapter

from cluster.storage import Storage
from orchestrator.care.records import KINDS, Care, Finding, Kind
from orchestrator.care.sheets import Pixels, draw_sheet

ALL = "care.json"
"""Written last: where it is there, all is."""

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "label_errors": ("file", "label", "likelier", "quality"),
    "near_duplicates": ("group", "part", "file", "label", "copy", "similarity"),
    "leaks": ("test_file", "test_label", "train_file", "train_label", "copy", "similarity"),
    "odd_images": ("part", "file", "label", "why", "distance"),
}


def write_care(storage: Storage, prefix: str, care: Care, pixels: Pixels) -> None:
    """Writes the lists under a prefix, "" or one that ends with a slash."""
    for kind in KINDS:
        findings = care.found.get(kind, ())
        storage.put(f"{prefix}{kind}.csv", table(kind, findings).to_csv(index=False).encode())
        if findings:
            storage.put(f"{prefix}{kind}.png", draw_sheet(kind, findings, pixels))
        else:
            storage.delete(f"{prefix}{kind}.png")
    storage.put(prefix + ALL, TypeAdapter(Care).dump_json(care, indent=1))


def read_care(storage: Storage, prefix: str) -> Care | None:
    """What ``write_care`` left, or None."""
    if prefix + ALL not in storage.list(prefix + ALL):
        return None
    return TypeAdapter(Care).validate_json(storage.get(prefix + ALL))


def table(kind: Kind, findings: tuple[Finding, ...]) -> pd.DataFrame:
    """A list's CSV: one row a finding, of near duplicates one an image."""
    rows: list[tuple[object, ...]] = []
    for number, finding in enumerate(findings, 1):
        first, score = finding.images[0], round(finding.score, 4)
        if kind == "label_errors":
            rows.append((first.file, first.label, finding.said, score))
        elif kind == "odd_images":
            rows.append((first.part, first.file, first.label, finding.said, score))
        elif kind == "leaks":
            _, train = finding.images
            rows.append((first.file, first.label, train.file, train.label, finding.said, score))
        else:
            rows += [(number, each.part, each.file, each.label, finding.said, score) for each in finding.images]
    return pd.DataFrame(rows, columns=list(COLUMNS[kind]))
