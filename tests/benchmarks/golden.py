"""Three small studies, and everything they decided and scored: what a refactoring must leave as it was, to the last bit.

    python tests/benchmarks/golden.py --out before.json         # in a checkout of the old code
    python tests/benchmarks/golden.py --against before.json     # in the new one, on the same machine

A classification study, a few-shot study with cross-validation, and one whose trials have two workers. Only what users see is
compared (leaderboard, test scores, weights of the winner), so the script runs in any version. Scores depend on the processor,
so what it writes is compared on one machine and kept nowhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.connect import connect
from orchestrator import Study, run

SMALL: dict[str, Any] = {"data": "digits", "size": 12, "epoch_images": 96, "slots": 1, "precision": "fp32"}

STUDIES: dict[str, dict[str, Any]] = {
    "classification": {
        **SMALL, "labels": 60, "methods": ["supervised", "simclr", "fixmatch", "byol"], "trials": 14, "epochs": 9, "seed": 3,
        "search": {"*.batch_size": {"low": 16, "high": 32}}, "selection": {"top": 2, "seeds": 2},
    },
    "few_shot": {
        **SMALL, "data": "glyphs", "size": 16, "task": "few_shot", "methods": ["prototypical", "matching"], "trials": 5,
        "few_shot": {"ways": 3, "shots": 1, "queries": 3, "episodes": 30, "hold_out": "group", "cross_validate": True},
        "search": {"*.ways": 3, "*.tasks": 2}, "selection": {"top": 2, "seeds": 1}, "epochs": 3,
    },
    "two_workers": {
        **SMALL, "labels": 60, "methods": ["supervised", "mean_teacher"], "trials": 6, "epochs": 3, "workers": 2,
        "search": {"*.batch_size": 16}, "selection": {"top": 1, "seeds": 2},
    },
}  # fmt: skip


def outcome(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the study decided and scored; floats as hexadecimal, so that equal means equal."""
    result = run(Study(**values), folder)
    assert result.best is not None
    board = result.leaderboard().drop(columns="seconds").astype(object)
    rows = [
        {k: v.hex() if isinstance(v, float) else str(v) for k, v in row.items() if v == v} for row in board.to_dict("records")
    ]
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(result.best.load_encoder().state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return {
        "leaderboard": rows,
        "test": [score.hex() for score in result.best.test.scores],
        "validation": result.best.validation.hex(),
        "weights": digest.hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the outcome is written")
    parser.add_argument("--against", type=Path, help="an outcome to be equal to")
    parser.add_argument("--only", choices=list(STUDIES), help="this study alone")
    given = parser.parse_args()
    names = [given.only] if given.only else list(STUDIES)
    with tempfile.TemporaryDirectory() as place, connect("local", cpus=2):
        found = {name: outcome(STUDIES[name], Path(place) / name) for name in names}
    if given.out:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if given.against:
        expected = json.loads(given.against.read_text(encoding="utf-8"))
        for name in names:
            differing = [key for key in found[name] if found[name][key] != expected[name][key]]
            print(f"{name}: {'equal' if not differing else 'differs in ' + ', '.join(differing)}")
            for mine, theirs in zip(found[name]["leaderboard"], expected[name]["leaderboard"], strict=False):
                if mine != theirs:
                    print(f"  {mine}\n  {theirs}")
        sys.exit(any(found[name] != expected[name] for name in names))


if __name__ == "__main__":
    main()
