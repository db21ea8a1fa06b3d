"""All that a method owes, whichever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from methods.contracts import Method
from methods.testing.cases import Case, case_of
from methods.testing.checks import CHECKS
from methods.testing.feature_checks import FEATURE_CHECKS


def checks_of(method: Method) -> tuple[Callable[[Case], None], ...]:
    """What a method of this kind owes, cheapest first."""
    return FEATURE_CHECKS if method.on_features else CHECKS


def check_method(method: Method, values: Mapping[str, object] | None = None) -> None:
    """Every check on a method; where it needs captions, also without any, when it makes them of the class names.

    Args:
        method: the catalogue entry.
        values: knobs to be checked at, beside the defaults and those that make it fit 64 images of 16 x 16.
    Raises:
        AssertionError: the first thing that the method owes, in a sentence.
    """
    for captions in (True, False) if method.uses_captions else (True,):
        case = case_of(method, values, captions)
        for check in checks_of(method):
            check(case)
