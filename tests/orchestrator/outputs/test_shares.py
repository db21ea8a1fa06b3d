"""Which methods the trials went to: counted from the journal, and the allocation's own reason."""

from __future__ import annotations

import yaml

from orchestrator import Study
from orchestrator.allocation import Halving
from orchestrator.engine.events import Event, Selected, TrialStarted
from orchestrator.engine.history import History
from orchestrator.engine.records import TrialSpec
from orchestrator.folder import dump_study
from orchestrator.outputs.shares import shares_of

METHODS = ["supervised", "simclr", "moco"]


class Mine(Halving):
    """An allocation of one's own."""


def searched(*methods: str) -> History:
    started: list[Event] = [TrialStarted(TrialSpec(f"{i:04d}", i, name, {}, 0)) for i, name in enumerate(methods)]
    later = TrialSpec("0000-0of2-0", 0, methods[0], {}, 0, "fold", folds=2)
    return History([*started, Selected([0]), TrialStarted(later)])


def test_trials_are_counted_the_most_first_and_the_allocation_says_why() -> None:
    history = searched("supervised", "simclr", "moco", "simclr", "simclr", "moco")
    study = Study(data="digits", labels=40, methods=METHODS, allocation="round_robin")
    assert str(shares_of(study, history)) == (
        "Trials of each method: simclr 3, moco 2, supervised 1; every method got as many trials as the others."
    )
    joint = shares_of(Study(data="digits", labels=40, methods=METHODS), history)
    assert joint.trials == {"simclr": 3, "moco": 2, "supervised": 1}
    assert joint.why.startswith("one model over all methods and knobs (TPE)")


def test_an_allocation_that_stayed_in_its_script_needs_no_reason() -> None:
    study = Study(data="digits", labels=40, methods=METHODS, allocation=Mine())
    kept = Study(**yaml.safe_load(dump_study(study)))
    assert shares_of(kept, searched("simclr")).why == "shared by an allocation that was given in Python"
