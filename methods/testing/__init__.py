"""The conformance suite: what every method owes, checked on tiny data in seconds. Run it on your own method in your own tests.

    from methods.testing import check_method

    def test_my_method():
        check_method(METHOD)

Each check is a function of a ``Case`` and raises an AssertionError that says in a sentence what the method owes; ``CHECKS`` are
all of them, ``FEATURE_CHECKS`` those of a method on frozen features. That two workers with half
of the batch each equal one needs two processes and is checked for the catalogue only.
"""

from methods.testing.cases import CLASSES, Case, case_of, through_file, tiny_batch, tiny_data
from methods.testing.checks import (
    CHECKS,
    check_device,
    check_encoder,
    check_entry,
    check_episodes,
    check_gradient,
    check_knobs,
    check_labels_unread,
    check_loss,
    check_pickles,
    check_pictures,
    check_resume,
    check_same_seed,
)
from methods.testing.feature_checks import FEATURE_CHECKS
from methods.testing.suite import check_method, checks_of

__all__ = [
    "CHECKS",
    "CLASSES",
    "FEATURE_CHECKS",
    "Case",
    "case_of",
    "check_device",
    "check_encoder",
    "check_entry",
    "check_episodes",
    "check_gradient",
    "check_knobs",
    "check_labels_unread",
    "check_loss",
    "check_method",
    "check_pickles",
    "check_pictures",
    "check_resume",
    "check_same_seed",
    "checks_of",
    "through_file",
    "tiny_batch",
    "tiny_data",
]
