"""One-shot characters from five alphabets: runs (or goes on with) a study, and checks its winner on alphabets it never saw.

    python tests/results/oneshot.py --data DIR --out RUN [--set key=value ...]
    python tests/results/oneshot.py --data DIR --out RUN --check        # the check alone

DIR holds omniglot-background-small1.zip and -small2.zip. The study is the preset ``omniglot_oneshot`` on small1; started again
with a RUN that exists, it goes on where it stopped. The check is on small2's alphabets that small1 lacks. It is for people:
nothing is chosen by it. It appends one line a check to RUN/checks.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from methods.data.episodic import split_few_shot
from methods.data.records import LabelledSubset
from methods.data.sources import load
from methods.parts.averaged import AveragedEncoder
from methods.parts.encoders import Encoder
from methods.parts.framed import FramedEncoder
from methods.parts.joined import JoinedEncoder
from methods.protocols import FewShot
from methods.protocols.contract import Trained
from orchestrator import Result, resume, run
from orchestrator.oneshot import distance_of
from orchestrator.study import load_study

SMALL1, SMALL2 = "omniglot-background-small1.zip", "omniglot-background-small2.zip"


def unseen(data: Path, shape: tuple[int, int, int]) -> LabelledSubset:
    """small2's alphabets that small1 lacks."""
    first, second = (load(str(data / name), size=shape[1:], channels=shape[0]) for name in (SMALL1, SMALL2))
    new = [name for name in second.train.groups if name not in first.train.groups]
    part = split_few_shot(first, test=second, test_groups=new).test
    assert part is not None
    return part


def variants(encoder: Encoder) -> dict[str, Encoder]:
    """The exported encoder and what it is made of: what joining and averaging over views are worth."""
    found = {"exported": encoder}
    if isinstance(encoder, JoinedEncoder):
        members = [member for member in encoder.members if isinstance(member, Encoder)]
        found |= {f"member {k}": member for k, member in enumerate(members)}
        encoder = members[0]
    if isinstance(encoder, FramedEncoder) and isinstance(encoder.inside, AveragedEncoder):
        found["member 0, one view"] = FramedEncoder(encoder.inside.inside, encoder.paper)
    elif isinstance(encoder, AveragedEncoder):
        found["member 0, one view"] = encoder.inside
    return found


def check(result: Result, data: Path) -> dict[str, float]:
    """20-way one-shot error by variant, within alphabets and across them; printed with 95% intervals over 1,000 episodes."""
    assert result.best is not None, "the study has no winner yet"
    encoder = result.best.load_encoder()
    asked = unseen(data, encoder.shape)
    distance = distance_of(result.best.config)
    errors = {}
    for name, model in variants(encoder).items():
        for within in (True, False):
            protocol = FewShot(20, 1, 19, 1000, within_group=within, distance=distance)  # type: ignore[arg-type]
            score = protocol.score(Trained(model), asked, asked, 0)
            what = f"{name}, {'within' if within else 'across'} alphabets"
            errors[what] = 1 - score.value
            print(f"{what}: error {1 - score.value:.2%} [{1 - score.high:.2%}, {1 - score.low:.2%}]", flush=True)
    with (result.folder / "checks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"method": result.best.method, "validation": result.best.validation, "errors": errors}) + "\n")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="key=value")
    parser.add_argument("--check", action="store_true", help="only check the winner of RUN")
    options = parser.parse_args()
    if options.check:
        result = Result.open(options.out)
    elif options.out.exists():
        result = resume(options.out, quiet=False)
    else:
        study = load_study("omniglot_oneshot", [f"data={options.data / SMALL1}", *options.settings])
        result = run(study, options.out, quiet=False)
    check(result, options.data)


if __name__ == "__main__":
    main()
